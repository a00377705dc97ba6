"What the tests share: the command as people run it, and data that lies beside the checkout on some machines."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def root() -> Path: # of the repository
    return ROOT

@pytest.fixture(scope='session')
def shared() -> Path: # reference data beside the checkout; tests that need it are skipped where it is absent
    path = ROOT.parent/'shared'
    if not path.is_dir(): pytest.skip('needs the folder ../shared (reference data), which is not here')
    return path

@pytest.fixture
def cli(tmp_path):
    "Run `oacl …` in a process of its own, in `tmp_path`, quietly: (return code, stdout, stderr)."
    def run(*args, timeout=300, **variables):
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        env = {**os.environ, 'OACL_QUIET': '1', 'PYTHONPATH': os.pathsep.join(paths), **variables}
        done = subprocess.run([sys.executable, '-m', 'oacl.cli', *map(str, args)], cwd=tmp_path, env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        return done.returncode, done.stdout, done.stderr
    return run

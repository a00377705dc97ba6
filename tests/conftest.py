"What the tests share: the command as people run it, what it leaves behind, and data that lies beside the checkout on some machines."
import contextlib, hashlib, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working folder, and no progress bars."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OACL_QUIET', '1')
    return tmp_path

@pytest.fixture
def said(here, capfd):
    "Run `oacl …` in this process, without waiting for torch each time: (return code, stdout, stderr)."
    def run(*args):
        from oacl.cli import app
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop: app(list(map(str, args)))
        return stop.value.code, *capfd.readouterr()
    return run

def photos(folder, count=20, broken=0):
    "A folder of small pictures of noise; the last ones broken."
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(count): Image.fromarray(noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder/f'{i:02d}.png')
    for i in range(count - broken, count): (folder/f'{i:02d}.png').write_bytes(b'')
    return folder

def files(folder):
    "What lies in a folder: path -> hash of the bytes."
    found = sorted(path for path in Path(folder).rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

def one_line(code, out, err, *named):
    "A refusal: exit 2, nothing on stdout, one line on stderr that names what matters."
    assert code == 2, (out, err)
    assert out == ''
    assert err.startswith('oacl: ') and err.endswith('\n') and err.count('\n') == 1, err
    assert [word for word in named if word not in err] == [], err

@contextlib.contextmanager
def full_disk(limit):
    "Writing more than `limit` bytes into a file fails, for root as well; above 200, or the captured stderr is cut off too."
    resource = pytest.importorskip('resource', reason='limits of a process exist on Unix')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))               # Python ignores the signal, so a write raises EFBIG
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

# ---- processes that are stopped

def command(*args): return [sys.executable, '-m', 'oacl.cli', *map(str, args)]

def environment():
    "Quiet, one thread, and this checkout."
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'OACL_QUIET': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(paths)}

def start(*args, cwd):
    "A process in a group of its own, as a terminal starts it."
    interruptible = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)               # a background job's children ignore Ctrl-C otherwise
    return subprocess.Popen(list(map(str, args)), cwd=cwd, env=environment(), start_new_session=True, text=True, preexec_fn=interruptible,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def wait_for(path, process, seconds=240):
    "Until a file has something in it."
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f'{path} did not appear'
        time.sleep(.01)

def ended(process):
    "(return code, stdout, stderr) of a process that is about to end."
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err

"Two processes give what one would have given; a process that dies is started again with all others."
import subprocess, sys

import pytest
import torch

from conftest import environment, photos

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason='needs torch.distributed with gloo')

def torchrun(*arguments, cwd, processes=2, **variables):
    "Run a script or module in several processes, or in one without torchrun: (return code, stdout, stderr)."
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', processes] if processes > 1 else []
    done = subprocess.run(list(map(str, [sys.executable, *launcher, *arguments])), cwd=cwd, env=environment() | variables, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout, done.stderr

# Batch norm is left out of the comparison: without SyncBatchNorm, which exists for GPUs alone, its statistics are those of each process.
STEPS = '''
import sys, torch
from pathlib import Path
from torch import nn
from oacl.methods import make_method
from oacl.processes import Processes
from oacl.train import TrainingData, _Run, make_optimizer
from oacl.views import TwoViews, Views

class Fixed(TwoViews):
    "Views without chance, so that it does not matter who draws."
    def __call__(self, images, **_): return Views(images[..., 4:20, 4:20], images[..., 6:22, 6:22])

def main():                                       # in a function: a DDP module that outlives the interpreter aborts the process now and then
    images = torch.randint(0, 256, (32, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with Processes() as here:
        for name, options in dict(simclr={}, moco=dict(queue_size=20), byol=dict(hidden=16)).items():
            torch.manual_seed(0)
            method, head = make_method(name, dict(arch='resnet8', widths=[8, 8, 8]), dict(hidden=16, out=8), **options)
            settings = dict(views=vars(TwoViews(16)), seed=0, accumulate=1, batch_size=8, images=32, steps=3, arch={}, head={})
            run = _Run(Path('.'), method, make_optimizer('sgd', method, 0.), settings, {}, torch.device('cpu'), 'fp32', 1, here, None, 0)
            run.prepare(False)
            for module in method.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)): module.eval()
            losses = []
            for step, batch in enumerate(TrainingData(images).batches(run.plan(0))):
                loss, _ = run.step(batch, Fixed(16), step, .05)
                if here.count > 1: torch.distributed.all_reduce(loss)
                losses.append(loss/here.count)
            if here.rank == 0: torch.save(dict(losses=torch.cat(losses), state=method.state_dict()), f'{name}-{here.count}.pt')

main()
'''

def test_two_processes_are_one(tmp_path):
    "Losses, weights after three steps (so: averaged gradients), momentum copies and the queue."
    (tmp_path/'steps.py').write_text(STEPS)
    for processes in (1, 2):
        code, out, err = torchrun('steps.py', cwd=tmp_path, processes=processes)
        assert code == 0, err
    for name in ('simclr', 'moco', 'byol'):
        one, two = (torch.load(tmp_path/f'{name}-{processes}.pt', weights_only=True) for processes in (1, 2))
        torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-4, msg=lambda text: f'{name}: {text}')
    assert one['losses'].isfinite().all()

PHOTOS = ['pretrain', 'photos', '--size', 32, '--view-size', 24, '--batch-size', 16, '--device', 'cpu', '--method', 'moco']

def test_the_command_in_two_processes(tmp_path):
    "One log, one checkpoint, one message; and the batch must be shared evenly."
    photos(tmp_path/'photos', 40)
    code, out, err = torchrun('-m', 'oacl', *PHOTOS, '--out', 'run', '--steps', 4, '--localize-every', 2, cwd=tmp_path)
    assert code == 0, err
    assert out.count('trained on') == 1
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['checkpoint.pt', 'config.json', 'log.jsonl', 'objects-000002.pt']
    code, out, err = torchrun('-m', 'oacl', *PHOTOS, '--out', 'odd', '--steps', 2, '--batch-size', 17, cwd=tmp_path)
    assert code != 0 and err.count('cannot be shared by 2 processes with 1 parts each: use --batch-size 16') == 1
    assert not (tmp_path/'odd').exists()

DIES_ONCE = '''
import os, pathlib, signal, sys
from oacl import cli, train
step = train._Run.step
def dying(self, batch, views, number, rate):
    if number == 5 and self.here.rank == 1 and not self.here.restarted: os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, views, number, rate)
train._Run.step = dying
fit = train._Run.fit
train._Run.fit = lambda self, data, views, first, rates, log, seconds, every, desc: fit(self, data, views, first, rates, log, 0., 2, desc)      # saves every other step
if os.environ['RANK'] == '0': pathlib.Path(f"started-{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
cli.main()
'''

def test_a_process_that_dies_is_started_again(tmp_path):
    "With all others, from the last checkpoint, without being told to resume."
    photos(tmp_path/'photos', 40)
    (tmp_path/'dies.py').write_text(DIES_ONCE)
    code, out, err = torchrun('--max-restarts', 1, 'dies.py', *PHOTOS, '--out', 'run', '--steps', 8, cwd=tmp_path)
    assert code == 0, err
    assert [path.name for path in sorted(tmp_path.glob('started-*'))] == ['started-0', 'started-1']
    assert torch.load(tmp_path/'run/checkpoint.pt', weights_only=True)['training']['step'] == 8

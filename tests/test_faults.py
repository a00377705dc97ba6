"What goes wrong on real machines: bad input, full disks, missing permissions, Ctrl-C and kills."
import ctypes, json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from conftest import command, ended, environment, files, full_disk, one_line, photos, start, wait_for

TINY = ['--size', 32, '--view-size', 24, '--device', 'cpu']

@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working folder with photographs, folders that are none, a run, and no progress bars."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OACL_QUIET', '1')
    photos(tmp_path/'photos')
    photos(tmp_path/'damaged', 10, broken=7)
    photos(tmp_path/'single', 1)
    for name in ('empty', 'texts', 'old'): (tmp_path/name).mkdir()
    (tmp_path/'texts/notes.txt').write_text('nothing to see')
    (tmp_path/'other.txt').write_text('elsewhere.png 0.1,0.2,0.3,0.4\n')
    (tmp_path/'wrong.txt').write_text('00.png 0.1,0.2,0.3,9.0\n')
    (tmp_path/'old/config.json').write_text('{"method": "simclr", "steps": 9, "info": {}}')
    (tmp_path/'old/checkpoint.pt').write_text('not what it was')
    (tmp_path/'old/boxes.txt').write_text('00.png\n')
    torch.save(dict(weights=torch.zeros(2)), tmp_path/'foreign.pt')
    return tmp_path

# ---- bad input

NEW = ['photos', '--out', 'new', '--steps', 1]

BAD = {
    'missing folder': (['pretrain', 'nowhere', '--out', 'new'], 'nowhere'),
    'missing folder, pipeline': (['pipeline', 'nowhere', '--out', 'new'], 'nowhere'),
    'empty folder': (['pretrain', 'empty', '--out', 'new'], 'empty'),
    'folder without images': (['localize', 'texts', '--out', 'new'], 'no image'),
    'a file, not a folder': (['pretrain', 'texts/notes.txt', '--out', 'new'], 'is a file'),
    'more than half broken': (['pretrain', 'damaged', '--out', 'new'], 'cannot be read'),
    'more than half broken, pipeline': (['pipeline', 'damaged', '--out', 'new'], 'cannot be read'),
    'one image': (['pretrain', 'single', '--out', 'new'], 'add images'),
    'unknown crop': (['pretrain', *NEW, '--crop', 'round'], 'round', 'object-aware'),
    'unknown mix': (['pretrain', *NEW, '--mix', 'paint'], 'paint', 'background'),
    'unknown crop, pipeline': (['pipeline', *NEW, '--crop', 'round'], 'round', 'object-aware'),
    'nothing to compare': (['pipeline', *NEW, '--crop', 'plain', '--mix', 'none'], 'compare'),
    'k-NN without labels': (['pretrain', *NEW, '--batch-size', 4, '--knn-every', 1], 'labels'),
    'a batch in three parts': (['pretrain', *NEW, '--batch-size', 8, '--accumulate', 3], '--batch-size'),
    'scenes from disk': (['pretrain', 'scenes', '--out', 'new', '--stream'], '--stream'),
    'crop without boxes': (['pretrain', *NEW, '--crop', 'object-aware'], '--boxes'),
    'mix without masks': (['pretrain', *NEW, '--mix', 'background'], '--masks'),
    'missing boxes': (['pretrain', *NEW, '--crop', 'object-aware', '--boxes', 'nowhere.txt'], 'nowhere.txt'),
    'boxes of other images': (['pretrain', *NEW, '--crop', 'object-aware', '--boxes', 'old/boxes.txt', '--strict'], 'lacks'),
    'boxes that are none': (['pretrain', *NEW, '--crop', 'object-aware', '--boxes', 'wrong.txt'], 'wrong.txt', 'line 1'),
    'boxes of no image': (['pretrain', *NEW, '--crop', 'object-aware', '--boxes', 'other.txt'], 'other images', '00.png'),
    'missing masks': (['pretrain', *NEW, '--mix', 'background', '--masks', 'nowhere'], 'no masks folder'),
    'unknown method': (['pretrain', *NEW, '--method', 'guessing'], 'guessing', 'simclr', 'moco', 'byol'),
    'unknown encoder': (['pretrain', *NEW, '--arch', 'resnet7'], 'resnet7', 'resnet8'),
    'unknown optimizer': (['pretrain', *NEW, '--optimizer', 'luck'], 'luck', 'adamw'),
    'unknown precision': (['pretrain', *NEW, '--precision', 'fp7'], 'fp7', 'bf16'),
    'unknown device': (['pretrain', *NEW, '--device', 'quantum'], 'quantum', 'cpu'),
    'unknown device, pipeline': (['pipeline', *NEW, '--device', 'quantum'], 'quantum', 'cpu'),
    'absent device': (['pretrain', *NEW, '--device', 'cuda:99'], 'cuda:99', 'cpu'),
    'batch larger than the data': (['pretrain', *NEW, '--batch-size', 100, *TINY], '--batch-size'),
    'batch of one': (['pretrain', *NEW, '--batch-size', 1, *TINY], 'batches of 2'),
    'no steps': (['pretrain', 'photos', '--out', 'new', '--steps', 0, *TINY], '1 step'),
    'crop larger than the images': (['pretrain', *NEW, '--size', 24, '--view-size', 48], '48', '24'),
    'crop larger than the scenes': (['pretrain', 'scenes', '--out', 'new', '--size', 16, '--view-size', 48], '48', '16'),
    'no size': (['pretrain', *NEW, '--size', 0, '--view-size', 8], 'size'),
    'negative size': (['pretrain', *NEW, '--size', -8], 'size'),
    'enormous size': (['pretrain', *NEW, '--size', 10_000_000], 'memory'),
    'no view': (['pretrain', *NEW, '--size', 32, '--view-size', 0], 'view'),
    'enormous seed': (['pretrain', *NEW, '--seed', 10**30], 'seed'),
    'no iterations': (['localize', 'photos', '--out', 'new', '--iters', 0], 'iters'),
    'impossible upscale': (['localize', 'photos', '--out', 'new', '--upscale', 3], 'upscale'),
    'impossible threshold': (['localize', 'photos', '--out', 'new', '--threshold', 7], 'threshold'),
    'world options on photographs': (['pretrain', *NEW, '--background-bias', .5], '--background-bias', 'scenes'),
    'ceiling on photographs': (['pipeline', *NEW, '--ceiling'], '--ceiling', 'scenes'),
    'too many objects': (['pretrain', 'scenes', '--out', 'new', '--objects', 9], '9'),
    'a bias that is none': (['pipeline', 'scenes', '--out', 'new', '--background-bias', 2], '2'),
    'run exists': (['pretrain', 'photos', '--out', 'old', *TINY], 'old', '--resume', '--overwrite'),
    'run exists, pipeline': (['pipeline', 'photos', '--out', 'old', *TINY], 'old', '--resume', '--overwrite'),
    'boxes exist': (['localize', 'photos', '--out', 'old'], 'boxes.txt', '--overwrite'),
    'another folder': (['pretrain', 'photos', '--out', 'texts', *TINY], 'texts', '--out'),
    'out is a file': (['pretrain', 'photos', '--out', 'foreign.pt', *TINY], 'foreign.pt', '--out'),
    'out is a file, localize': (['localize', 'photos', '--out', 'foreign.pt'], 'foreign.pt'),
    'out below a file': (['pretrain', 'photos', '--out', 'foreign.pt/run', *TINY], 'foreign.pt', '--out'),
    'out is a device': (['pretrain', 'photos', '--out', '/dev/null', *TINY], '/dev/null', '--out'),
    'damaged checkpoint, resume': (['pretrain', 'photos', '--out', 'old', '--resume', *TINY], 'old/checkpoint.pt', 'damaged'),
    'another pipeline, resume': (['pipeline', 'photos', '--out', 'old', '--resume', *TINY], 'old', '--overwrite'),
    'damaged checkpoint, evaluate': (['evaluate', 'photos', '--run', 'old'], 'old/checkpoint.pt', 'damaged'),
    'no checkpoint, evaluate': (['evaluate', 'photos', '--run', 'empty'], 'no checkpoint'),
    'no checkpoint, localize': (['localize', 'photos', '--out', 'new', '--checkpoint', 'nowhere.pt'], 'nowhere.pt'),
    'foreign checkpoint': (['localize', 'photos', '--out', 'new', '--checkpoint', 'foreign.pt'], 'foreign.pt'),
    'report of nothing': (['report', 'nowhere'], 'nowhere', 'oacl pipeline'),
    'report of something else': (['report', 'texts'], 'texts', 'oacl pipeline'),
}

@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_loses_nothing(case, here, said):
    arguments, *named = BAD[case]
    if case == 'out is a device' and not Path('/dev/null').exists(): pytest.skip('no /dev/null here')
    before = files(here)
    one_line(*said(*arguments), *named)
    assert files(here) == before

def test_two_images_that_would_share_a_mask_are_refused_before_training(here, said):
    shutil.copy('photos/00.png', 'photos/00.webp')
    for i in range(1, 5): shutil.copy(f'photos/{i:02d}.png', f'photos/{i:02d}.jpg')
    one_line(*said('pipeline', 'photos', '--out', 'new', '--steps', 1, *TINY), 'rename')
    assert not (here/'new/plain/checkpoint.pt').exists()

@pytest.mark.parametrize('command', ['pretrain', 'pipeline'])
@pytest.mark.parametrize('options', ids=lambda options: options[0], argvalues=[
    ['--device', 'quantum'], ['--batch-size', 100], ['--method', 'guessing'], ['--view-size', 48], ['--optimizer', 'luck']])
def test_a_refused_command_does_not_overwrite(command, options, here, said):
    before = files(here/'old')
    fine = ['photos', '--out', 'old', '--overwrite', '--steps', 1, '--size', 32, '--view-size', 24]
    one_line(*said(command, *fine, *options))                                # of an option that is given twice, the last counts
    assert files(here/'old') == before

def test_damaged_photographs_do_not_overwrite(here, said):
    before = files(here/'old')
    one_line(*said('pipeline', 'damaged', '--out', 'old', '--overwrite', *TINY), 'cannot be read')
    assert files(here/'old') == before

def test_missing_boxes_do_not_overwrite(here, said):
    before = files(here/'old')
    command = ['pretrain', 'photos', '--out', 'old', '--overwrite', '--crop', 'object-aware', '--boxes', 'nowhere.txt', *TINY]
    one_line(*said(*command), 'nowhere.txt')
    assert files(here/'old') == before

def test_a_diverging_loss_is_told(here, said):
    code, out, err = said('pretrain', 'photos', '--out', 'new', '--steps', 10, '--lr', 'nan', *TINY)
    one_line(code, out, err, '--lr')

def test_bad_input_in_a_process(cli, tmp_path):
    "As above, with nothing between the command and the terminal: warnings would show here."
    photos(tmp_path/'photos')
    one_line(*cli('pipeline', 'photos', '--out', 'new', '--batch-size', 100, *TINY), '--batch-size')

# ---- no space

def test_a_file_is_whole_or_not_there(here):
    from oacl.core import RunError, atomic_write
    atomic_write('new/old.bin', lambda file: file.write(b'old'))
    for name in ('old.bin', 'fresh.bin'):
        with full_disk(1000), pytest.raises(RunError, match='free some space'):
            atomic_write(f'new/{name}', lambda file: file.write(bytes(100_000)))
    assert [path.name for path in Path('new').iterdir()] == ['old.bin'] and Path('new/old.bin').read_bytes() == b'old'

@pytest.mark.parametrize('limit', [400, 5000, 300_000])
def test_a_full_disk_while_training(limit, here, said):
    with full_disk(limit): said_here = said('pretrain', 'photos', '--out', 'new', '--steps', 12, *TINY)
    one_line(*said_here, 'cannot write')
    assert not (here/'new/checkpoint.pt').exists()
    assert [path.name for path in (here/'new').iterdir() if path.name.startswith('.')] == []

def test_a_full_disk_while_localizing(here, said):
    with full_disk(400): said_here = said('localize', 'photos', '--out', 'new', '--device', 'cpu')
    one_line(*said_here, 'cannot write')
    assert list((here/'new').rglob('.*')) == []

def stopped(said, monkeypatch, *command):
    "A run that Ctrl-C stopped after its tenth step."
    from oacl import train
    spread = train.feature_spread
    def interrupt(pooled):
        signal.raise_signal(signal.SIGINT)
        return spread(pooled)
    with monkeypatch.context() as patch:
        patch.setattr(train, 'feature_spread', interrupt)
        code, out, err = said(*command)
    assert code == 130 and out == ''
    assert err.count('\n') == 1 and 'step 10 of' in err and '--resume' in err

def steps_of(run):
    "Steps of a run's log."
    return [json.loads(line)['step'] for line in (run/'log.jsonl').read_text().splitlines()]

def test_a_disk_that_fills_up_leaves_the_last_checkpoint(here, said, monkeypatch):
    command = ['pretrain', 'photos', '--out', 'new', '--steps', 15, *TINY]
    stopped(said, monkeypatch, *command)
    before = files(here/'new')
    with full_disk(300_000): said_here = said(*command, '--resume')
    one_line(*said_here, 'checkpoint.pt')
    assert files(here/'new')['checkpoint.pt'] == before['checkpoint.pt']
    assert said(*command, '--resume')[0] == 0
    assert steps_of(here/'new') == [9, 14]

def test_a_log_that_was_cut_off_does_not_stop_a_run(here, said, monkeypatch):
    command = ['pretrain', 'photos', '--out', 'new', '--steps', 15, *TINY]
    stopped(said, monkeypatch, *command)
    with open(here/'new/log.jsonl', 'a') as file: file.write('{"step": 12, "epo')
    code, out, err = said(*command, '--resume')
    assert code == 0, err
    assert steps_of(here/'new') == [9, 14]

# ---- no permission

def drop_powers():
    "In a child of root: permissions bind it as they bind everybody (Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."
    if os.geteuid() == 0 and sys.platform == 'linux':
        for capability in (1, 2): ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)

@pytest.fixture
def bound(tmp_path):
    "Run `oacl …` in a process that permissions bind: (return code, stdout, stderr)."
    if os.name != 'posix': pytest.skip('permissions of this kind exist on Unix')
    locked = tmp_path/'locked'
    locked.mkdir(mode=0o555)
    probe = subprocess.run(['sh', '-c', f'echo > "{locked}/probe"'], stderr=subprocess.DEVNULL, preexec_fn=drop_powers)
    if probe.returncode == 0: pytest.skip('this user may write everywhere, and cannot give that up here')
    def run(*args):
        done = subprocess.run(command(*args), env=environment(), cwd=tmp_path, preexec_fn=drop_powers,
                              capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr
    yield run
    locked.chmod(0o755)

def test_a_folder_that_may_not_be_written(bound, tmp_path):
    photos(tmp_path/'photos')
    one_line(*bound('pretrain', 'photos', '--out', 'locked/run', *TINY), 'locked/run', 'Permission denied')
    one_line(*bound('localize', 'photos', '--out', 'locked', '--device', 'cpu'), 'locked', 'Permission denied')

def test_an_image_that_may_not_be_read(bound, tmp_path):
    photos(tmp_path/'photos')
    (tmp_path/'photos/03.png').chmod(0)
    code, out, err = bound('pretrain', 'photos', '--out', 'run', '--steps', 1, *TINY)
    assert code == 0, err
    assert '1 files could not be read' in err and '03.png' in err and 'Permission denied' in err
    (tmp_path/'photos').chmod(0)
    try: one_line(*bound('pretrain', 'photos', '--out', 'other', *TINY), 'photos', 'Permission denied')
    finally: (tmp_path/'photos').chmod(0o755)

# ---- Ctrl-C and kills

def weights(run):
    "All tensors of a checkpoint's training state."
    return torch.load(Path(run)/'checkpoint.pt', weights_only=True)['training']['method']

def assert_same_weights(run, other):
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []

def assert_stopped(code, out, err, steps):
    assert code == 130 and out == ''
    assert err.count('\n') == 1 and f'of {steps}' in err and '--resume' in err, err

def test_ctrl_c_leaves_a_run_that_resume_continues_exactly(tmp_path):
    photos(tmp_path/'photos')
    arguments = ['photos', '--steps', 400, '--batch-size', 4, *TINY]
    process = start(*command('pretrain', *arguments, '--out', 'stopped'), cwd=tmp_path)
    wait_for(tmp_path/'stopped/log.jsonl', process)
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(*ended(process), 400)
    done = torch.load(tmp_path/'stopped/checkpoint.pt', weights_only=True)['training']['step']
    assert 10 <= done < 400
    for folder, more in (('stopped', ['--resume']), ('straight', [])):
        code, out, err = ended(start(*command('pretrain', *arguments, '--out', folder, *more), cwd=tmp_path))
        assert (code, err) == (0, '')
    assert_same_weights(tmp_path/'stopped', tmp_path/'straight')
    assert steps_of(tmp_path/'stopped') == steps_of(tmp_path/'straight') == list(range(9, 400, 10))

def test_ctrl_c_in_a_pipeline(tmp_path):
    photos(tmp_path/'photos')
    arguments = command('pipeline', 'photos', '--out', 'run', '--steps', 150, '--batch-size', 4, *TINY)
    process = start(*arguments, cwd=tmp_path)
    wait_for(tmp_path/'run/debiased/log.jsonl', process)
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(*ended(process), 150)
    plain = files(tmp_path/'run/plain')['checkpoint.pt']
    code, out, err = ended(start(*arguments, '--resume', cwd=tmp_path))
    assert (code, err) == (0, '')
    assert files(tmp_path/'run/plain')['checkpoint.pt'] == plain
    assert steps_of(tmp_path/'run/debiased')[-1] == 149 and (tmp_path/'run/report.html').exists()

SAVES_EVERY_STEP = '''
import sys, torch
from oacl.train import TrainingData, train
from oacl.views import TwoViews
noise = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (16, 3, 24, 24), generator=noise, dtype=torch.uint8)
masks = torch.zeros(16, 1, 24, 24, dtype=torch.uint8)
masks[:, :, 8:16, 8:16] = 255
train(TrainingData(images, cams=masks), sys.argv[1], method='moco', options=dict(queue_size=12), views=TwoViews(size=16),
      arch=dict(arch='resnet8', widths=[8, 16, 24]), head=dict(hidden=16, out=8), steps=150, batch_size=6, device='cpu',
      resume=True, checkpoint_seconds=0., log_every=7)
'''

def test_a_killed_run_continues_exactly(tmp_path):
    "Killed twice, at any moment: while a step is made, a checkpoint is written or a log is cut."
    for _ in range(2):
        process = start(sys.executable, '-c', SAVES_EVERY_STEP, 'killed', cwd=tmp_path)
        wait_for(tmp_path/'killed/checkpoint.pt', process)
        before = (tmp_path/'killed/checkpoint.pt').stat().st_mtime_ns
        while (tmp_path/'killed/checkpoint.pt').stat().st_mtime_ns == before and process.poll() is None: time.sleep(.002)
        time.sleep(random.uniform(0, .2))
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert torch.load(tmp_path/'killed/checkpoint.pt', weights_only=True)['training']['step'] >= 1      # whole
    for folder in ('killed', 'straight'):
        code, out, err = ended(start(sys.executable, '-c', SAVES_EVERY_STEP, folder, cwd=tmp_path))
        assert code == 0, err
    assert_same_weights(tmp_path/'killed', tmp_path/'straight')
    assert steps_of(tmp_path/'killed') == steps_of(tmp_path/'straight')

SLOW_DISK = SAVES_EVERY_STEP.replace("resume=True", "resume=True, keep=2").replace("steps=150", "steps=12").replace('noise =', """
if sys.argv[2:] == ['slow']:                                                     # half of the checkpoint is on disk, then nothing for a while
    import pathlib, time, oacl.train
    whole = torch.save
    def slow(state, file):
        if state['training']['step'] < 5: return whole(state, file)
        import io
        buffer = io.BytesIO(); whole(state, buffer)
        file.write(buffer.getvalue()[:len(buffer.getvalue())//2]); file.flush()
        pathlib.Path('writing').write_text('now')
        time.sleep(60)
    torch.save = slow
noise =""", 1)

def test_killed_while_a_checkpoint_is_written(tmp_path):
    "The last whole checkpoint stays, the half one is never taken for one, and the run goes on from there exactly."
    process = start(sys.executable, '-c', SLOW_DISK, 'killed', 'slow', cwd=tmp_path)
    wait_for(tmp_path/'writing', process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert torch.load(tmp_path/'killed/checkpoint.pt', weights_only=True)['training']['step'] == 4
    for folder in ('killed', 'straight'):
        code, out, err = ended(start(sys.executable, '-c', SLOW_DISK, folder, cwd=tmp_path))
        assert code == 0, err
    assert_same_weights(tmp_path/'killed', tmp_path/'straight')
    assert sorted(path.name for path in (tmp_path/'straight').glob('*.pt')) == ['best.pt', 'checkpoint-000011.pt', 'checkpoint-000012.pt', 'checkpoint.pt']

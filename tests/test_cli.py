"The command as people use it: help, odd files, the chain of single commands, runs that exist already."
import functools, json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import files, one_line

TINY = ['--size', 32, '--view-size', 24, '--device', 'cpu']

def picture(seed, height=40, width=40):
    "A block of one colour on a ground of another."
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.uint8) + random.integers(0, 256, 3).astype(np.uint8)
    pixels[height//4:height//4 + height//2, width//4:width//4 + width//2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)

def photos(folder, count=20, classes=0):
    "A folder of `count` small pictures, in class folders if there are classes."
    for i in range(count):
        path = Path(folder)/(f'class-{i%classes}' if classes else '')/f'{i:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return Path(folder)

@pytest.fixture
def small_world(monkeypatch):
    "The embedded world with few scenes."
    from oacl import pipeline
    monkeypatch.setattr(pipeline, 'open_scenes', functools.partial(pipeline.open_scenes, train=64, test=80, memory=80, val=80))

# ---- help

COMMANDS = ['pretrain', 'localize', 'evaluate', 'report', 'pipeline', 'demo', 'bench scenes', 'bench world']

def test_help_names_every_command(cli):
    code, out, err = cli('--help')
    assert code == 0 and err == ''
    assert [name for name in COMMANDS if name.split()[0] not in out] == []

@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_a_command_says_what_it_takes(said, command):
    code, out, err = said(*command.split(), '--help')
    assert code == 0 and err == ''
    assert ('DATA' in out) == (command in ('pretrain', 'localize', 'evaluate', 'pipeline'))
    if command not in ('evaluate', 'report', 'bench scenes'): assert '--out' in out

@pytest.mark.parametrize('arguments', [[], ['bench']])
def test_a_command_alone_shows_its_help(said, arguments):
    _, out, err = said(*arguments)
    assert 'Usage' in out + err and 'Traceback' not in err

def test_installed_command():
    command = shutil.which('oacl', path=str(Path(sys.executable).parent))
    if command is None: pytest.skip('oacl is not installed in this environment (pip install -e .)')
    done = subprocess.run([command, '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'pipeline' in done.stdout

@pytest.mark.parametrize('arguments, named', [
    (['pretrain', 'photos'], '--out'), (['pretrain'], 'DATA'),
    (['pretrain', 'photos', '--out', 'run', '--steps', 'many'], '--steps'),
    (['pretrain', 'photos', '--out', 'run', '--colour', 'red'], '--colour'),
    (['pipeline', 'photos', '--seeds', '0'], '--seeds'), (['paint'], 'paint')])
def test_a_mistyped_command_is_explained(said, arguments, named):
    code, out, err = said(*arguments)
    assert code == 2 and out == ''
    assert named in err.strip().splitlines()[-1] and 'Traceback' not in err

# ---- odd files

BROKEN = ['cut.jpg', 'empty.png', 'text.png']

@pytest.fixture
def odd(here):
    "Twelve files that are odd but fine, and three that are broken."
    folder = here/'odd'
    folder.mkdir()
    picture(0).convert('L').save(folder/'grey.png')
    picture(1).convert('P').save(folder/'palette.png')
    picture(2).convert('CMYK').save(folder/'cmyk.jpg')
    picture(3).convert('RGBA').save(folder/'transparent.png')
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)*40).save(folder/'deep.png')
    picture(4).save(folder/'animated.gif', save_all=True, append_images=[picture(5), picture(6)])
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(7, 30, 60).save(folder/'turned.jpg', exif=turned)
    picture(8, 1, 1).save(folder/'pixel.png')
    picture(9, 4, 200).save(folder/'wide.bmp')
    picture(10, 20, 20).save(folder/'café in spring.webp')
    picture(11).save(folder/'really a png.jpg', format='PNG')
    picture(12).save(folder/'photo.tiff')
    picture(13).save(folder/'cut.jpg')
    (folder/'cut.jpg').write_bytes((folder/'cut.jpg').read_bytes()[:-400])
    (folder/'empty.png').touch()
    (folder/'text.png').write_text('no picture')
    (folder/'notes.txt').write_text('not meant as a picture')
    return folder

def test_odd_files_are_read_and_broken_ones_named(odd, cli):
    before = files(odd)
    code, out, err = cli('pipeline', 'odd', '--out', 'run', '--steps', 2, *TINY)
    assert code == 0, err
    page = (odd.parent/'run/report.html').read_text(encoding='utf-8')
    assert [name for name in BROKEN if name not in page] == []
    assert '3 files could not be read' in page
    assert files(odd) == before
    seen = (odd.parent/'run/plain/boxes.txt').read_text(encoding='utf-8')
    assert [name for name in BROKEN if name in seen] == []
    assert '3 files could not be read' in err and len(err.strip().splitlines()) == 1

def test_masks_lie_over_the_pictures_as_they_are_seen(odd, said):
    "At the size of the picture, upright; names as the pictures'."
    code, out, err = said('localize', 'odd', '--out', 'found', '--device', 'cpu')
    assert code == 0, err
    sizes = {'turned.png': (30, 60), 'pixel.png': (1, 1), 'wide.png': (200, 4), 'café in spring.png': (20, 20)}
    written = {path.name: Image.open(path).size for path in (odd.parent/'found/masks').glob('*.png')}
    both = set(sizes) & set(written)                                       # one in five is kept for testing
    assert len(both) >= 2 and {name: written[name] for name in both} == {name: sizes[name] for name in both}

def test_commands_count_all_broken_files(odd, said):
    for arguments in (['pretrain', 'odd', '--out', 'run', '--steps', 1, *TINY], ['localize', 'odd', '--out', 'found', '--device', 'cpu']):
        code, out, err = said(*arguments)
        assert code == 0, err
        assert '3 files could not be read' in err and len(err.strip().splitlines()) == 1

def test_broken_files_do_not_stop_a_run_wherever_they_lie(here, said):
    "Two of fifteen are broken: far from half, though both may be among the few for testing."
    from oacl.data import find_images, split_images
    folder = photos(here/'photos', 15)
    for name in split_images(find_images(folder))[1].ids[:2]: (folder/name).write_bytes(b'')
    code, out, err = said('pretrain', 'photos', '--out', 'run', '--steps', 1, *TINY)
    assert code == 0, err

def test_small_class_folders_go_through(here, said):
    photos(here/'photos', 8, classes=2)
    code, out, err = said('pipeline', 'photos', '--out', 'run', '--steps', 1, *TINY)
    assert code == 0, err
    results = json.loads((here/'run/debiased/results.json').read_text())
    assert results['accuracy']['classes'] == 2
    assert 'accuracy' in said('evaluate', 'photos', '--run', 'run/plain', '--device', 'cpu')[1]

def test_single_commands_take_small_images(here, said):
    "Views are cut for training only: localize and evaluate do not ask for room for them."
    photos(here/'photos', 8, classes=2)
    assert said('pretrain', 'photos', '--out', 'run', '--steps', 1, *TINY)[0] == 0
    localize = ['localize', 'photos', '--out', 'found', '--checkpoint', 'run/checkpoint.pt']
    for arguments in (localize, ['evaluate', 'photos', '--run', 'run']):
        code, out, err = said(*arguments, '--size', 32, '--device', 'cpu')
        assert (code, err) == (0, ''), arguments

def test_a_run_inside_the_folder_of_images_does_not_learn_from_itself(here, said):
    photos(here/'photos')
    for command in ('pipeline', 'pretrain'):
        code, out, err = said(command, 'photos', '--out', 'photos/run', '--steps', 1, *TINY)
        assert code == 2 and 'inside the data folder' in err, err
    assert not (here/'photos/run').exists()

# ---- the chain

def test_single_commands_on_scenes(here, said, small_world):
    few = ['--steps', 2, '--batch-size', 16, '--device', 'cpu']
    commands = [
        ['pretrain', 'scenes', '--out', 'plain', *few],
        ['localize', 'scenes', '--out', 'found', '--checkpoint', 'plain/checkpoint.pt', '--device', 'cpu'],
        ['pretrain', 'scenes', '--out', 'aware', '--crop', 'object-aware', '--boxes', 'found/boxes.txt',
         '--mix', 'background', '--masks', 'found/masks', *few],
        ['evaluate', 'scenes', '--run', 'aware', '--device', 'cpu']]
    for arguments in commands:
        code, out, err = said(*arguments)
        assert (code, err) == (0, ''), arguments
    assert 'background gap' in out and 'mask IoU' in out
    assert len((here/'found/boxes.txt').read_text().splitlines()) == 64 == len(list((here/'found/masks').glob('*.png')))
    config = json.loads((here/'aware/config.json').read_text())
    assert config['object_aware'] and config['background_mixup'] and config['steps'] == 2
    assert {'variants', 'background_gap', 'localization'} <= set(json.loads((here/'aware/results.json').read_text()))

def test_scenes_at_full_size_train(cli, tmp_path):
    code, out, err = cli('pretrain', 'scenes', '--out', 'run', '--steps', 1, '--batch-size', 8, '--device', 'cpu')
    assert (code, err) == (0, '')
    assert 'trained on 4096 images' in out and (tmp_path/'run/checkpoint.pt').exists()

def test_every_method_trains_on_photographs(here, said):
    photos(here/'photos')
    for method in ('simclr', 'moco', 'byol'):
        code, out, err = said('pretrain', 'photos', '--out', method, '--method', method, '--steps', 2, '--batch-size', 5, *TINY)
        assert code == 0, err
        assert json.loads((here/method/'config.json').read_text())['method'] == method

def test_report_is_written_again(here, said):
    photos(here/'photos')
    code, out, err = said('pipeline', 'photos', '--out', 'run', '--steps', 1, *TINY)
    assert (code, err) == (0, '')
    before = files(here/'run')
    for name in ('report.html', 'figures'): (shutil.rmtree if name == 'figures' else Path.unlink)(here/'run'/name)
    assert said('report', 'run', '--device', 'cpu')[0] == 0
    assert files(here/'run').keys() == before.keys()
    assert {name for name, bytes in files(here/'run').items() if bytes != before[name]} <= {'report.html'}

def test_demo_and_bench(here, said, small_world):
    code, out, err = said('bench', 'world', '--out', 'world', '--seeds', 1, '--steps', 1, '--device', 'cpu')
    assert (code, err) == (0, '')
    assert '| plain | debiased | ceiling |' in out and (here/'world/report.html').exists()
    assert '2 object(s)' in said('bench', 'scenes', '--n', 64)[1]

def test_real_photographs(cli, shared):
    code, out, err = cli('pipeline', shared/'data/coco-mini/train2017', '--out', 'run', '--steps', 2, '--batch-size', 16, *TINY)
    assert (code, err) == (0, '')

# ---- runs that exist already

def test_a_finished_run_is_kept_unless_told_otherwise(here, said):
    photos(here/'photos')
    command = ['pretrain', 'photos', '--out', 'run', *TINY]
    assert said(*command, '--steps', 2)[0] == 0
    before = files(here/'run')
    code, out, err = said(*command, '--steps', 2)
    assert code == 2 and '--resume' in err and '--overwrite' in err
    assert files(here/'run') == before
    assert said(*command, '--steps', 2, '--resume')[0] == 0                    # nothing left to do
    assert files(here/'run')['log.jsonl'] == before['log.jsonl']
    code, out, err = said(*command, '--steps', 3, '--resume')
    assert code == 2 and 'steps 2 -> 3' in err and len(err.splitlines()) == 1
    (here/'run/results.json').write_text('{}')
    assert said(*command, '--steps', 3, '--overwrite')[0] == 0
    assert not (here/'run/results.json').exists()
    assert json.loads((here/'run/config.json').read_text())['steps'] == 3

def test_a_finished_pipeline_resumes_at_once(here, said):
    photos(here/'photos')
    command = ['pipeline', 'photos', '--out', 'run', '--steps', 1, *TINY]
    assert said(*command)[0] == 0
    made = ('.pt', 'boxes.txt', 'results.json', '.png')
    weights = {name: bytes for name, bytes in files(here/'run').items() if name.endswith(made) and 'figures/' not in name}
    assert said(*command, '--resume')[0] == 0
    assert weights.items() <= files(here/'run').items()
    code, out, err = said(*command, '--mix', 'none', '--resume')
    assert code == 2 and 'other settings' in err and len(err.splitlines()) == 1

def test_localize_writes_again_only_when_told(here, said):
    photos(here/'photos', 6)
    command = ['localize', 'photos', '--out', 'found', '--device', 'cpu']
    assert said(*command)[0] == 0
    before = files(here/'found')
    code, out, err = said(*command)
    assert code == 2 and '--overwrite' in err and files(here/'found') == before
    assert said(*command, '--overwrite')[0] == 0
    assert files(here/'found') == before                                      # the same pictures, the same maps

@pytest.mark.parametrize('command', ['pretrain', 'pipeline'])
@pytest.mark.parametrize('config', [None, '{"theme": "dark"}'], ids=['no config', "someone else's config.json"])
@pytest.mark.parametrize('options', [['--overwrite'], ['--resume', '--overwrite']], ids=['overwrite', 'resume, then overwrite'])
def test_a_folder_that_is_no_run_is_never_deleted(here, said, command, config, options):
    photos(here/'photos')
    (here/'thesis').mkdir()
    (here/'thesis/chapter.txt').write_text('years of work')
    if config: (here/'thesis/config.json').write_text(config)
    before = files(here/'thesis')
    for option in options: code, out, err = said(command, 'photos', '--out', 'thesis', '--steps', 1, option, *TINY)
    assert files(here/'thesis').items() >= before.items()
    assert code == 2 and len(err.splitlines()) == 1

def test_bench_training(said):
    code, out, err = said('bench', 'training', '--part', 'mixup', '--rounds', 1, '--device', 'cpu')
    assert code == 0 and out.count('| batched') == 2 and '| a step of' not in out
    one_line(*said('bench', 'training', '--part', 'speed'), "'speed'", 'lightly')

# ---- from a checkpoint, and with few pictures

def test_from_all_images_to_one_photo(said, here):
    "Train on all images for some epochs, ship the model with its negatives, look at one photo, and go on from the weights."
    photos('photos', 12); photos('one', 1)
    code, out, err = said('pretrain', 'photos', '--out', 'first', '--epochs', 2, '--all-images', '--batch-size', 6, '--widths', '8,8,16', *TINY)
    assert code == 0 and 'trained on 12 images' in out, err
    assert json.loads(Path('first/config.json').read_text())['steps'] == 4
    code, _, err = said('localize', 'photos', '--checkpoint', 'first/checkpoint.pt', '--out', 'found', '--size', 32, '--bank-size', 5, '--device', 'cpu')
    assert code == 0 and json.loads(Path('found/localize.json').read_text())['bank'] == 5, err
    code, _, err = said('export', 'first', '--out', 'small.pt', '--bank', 'found/bank.pt')
    assert code == 0, err
    look = ['localize', 'one', '--checkpoint', 'small.pt', '--size', 32, '--device', 'cpu']
    one_line(*said(*look, '--out', 'alone'), 'at least two')
    code, out, err = said(*look, '--out', 'seen', '--negatives', 'small.pt')
    assert code == 0 and '1 images' in out, err
    second = ['pretrain', 'photos', '--out', 'second', '--init', 'small.pt', '--epochs', 1, '--batch-size', 4, *TINY]
    code, _, err = said(*second)
    config = json.loads(Path('second/config.json').read_text())
    assert code == 0 and config['arch']['widths'] == [8, 8, 16] and config['init'] == 'small.pt' and config['images'] == 10, err
    Path('small.pt').unlink()
    code, _, err = said(*second, '--resume')                                # what it began with is not needed any more
    assert code == 0, err

@pytest.mark.parametrize('words, message', [(['--epochs', 1, '--steps', 3], 'leave one out'), (['--init', 'absent.pt'], 'no checkpoint at absent.pt'),
                                            (['--init', 'scenes', '--widths', '8,8,16'], 'another encoder')])
def test_beginnings_that_cannot_be(said, here, words, message):
    photos('photos', 12)
    one_line(*said('pretrain', 'photos', '--out', 'run', '--batch-size', 4, *TINY, *words), message)
    assert not Path('run').exists()

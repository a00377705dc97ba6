"Whole folders: the same bytes however often a run was stopped and however many processes shared it."
import json, os, shutil, signal, subprocess, sys, threading, weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import command, ended, environment, files, full_disk, one_line, start, wait_for

SHAPES = [(32, 32), (32, 48), (48, 32), (40, 64)]
FEW = ['--size', 32, '--batch-size', 4, '--device', 'cpu']

def photos(folder, count=20, scale=1):
    "Pictures of a block on noisy ground, in four shapes."
    for i in range(count):
        noise, (height, width) = np.random.default_rng(i), (side*scale for side in SHAPES[i % 4])
        pixels = noise.integers(0, 60, (height, width, 3)) + noise.integers(0, 190, 3)
        top, left = noise.integers(0, height//2), noise.integers(0, width//2)
        pixels[top:top + height//2, left:left + width//2] = noise.integers(0, 256, 3)
        path = Path(folder)/f'{i%3}/{i:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return Path(folder)

def times(folder): return {path: path.stat().st_mtime_ns for path in Path(folder).rglob('*.png')}

def found_by(folder, out, **options):
    "Localise a folder in this process."
    from oacl.data import find_images
    from oacl.localize import Photos, localize
    kind = options.pop('kind', Photos)
    return localize(kind(find_images(folder), size=32), 'scenes', out, **dict(batch_size=4, device='cpu') | options)

# ---- what is found

def test_it_is_what_a_plain_loop_finds(here):
    from oacl.contracam import contracam
    from oacl.encoders import load_pretrained
    from oacl.masks import load_boxes, load_mask, mask_to_boxes
    photos('photos', 12)
    for path in list(Path('photos').rglob('*.png')):                        # only shapes that are shown as they are, so that masks are the maps
        if Image.open(path).size == (64, 40): path.unlink()
    looks = dict(iters=2, upscale=2)
    found = found_by('photos', 'found', masks=looks, boxes=looks)
    bank = torch.load('found/bank.pt', weights_only=True)
    networks, boxes = load_pretrained('scenes'), load_boxes('found/boxes.txt')
    assert sorted(bank['ids']) == sorted(boxes) == sorted(path.relative_to('photos').as_posix() for path in Path('photos').rglob('*.png'))
    assert found['images'] == found['masks'] == len(boxes) == 9 and found['boxes'] == sum(map(len, boxes.values()))
    for id, some in boxes.items():
        image = torch.tensor(np.array(Image.open(Path('photos')/id))).permute(2, 0, 1)[None]/255
        own = torch.tensor([[id == other for other in bank['ids']]])
        expected = contracam(*networks, image, 2, 2, negatives=bank['embeddings'], fill=bank['colour'], exclude=own)
        mask = load_mask('found/masks', id)
        assert mask.shape == expected[0].shape and (mask - expected[0]).abs().max() < 1.6/255
        torch.testing.assert_close(some, mask_to_boxes(mask[None])[0], atol=1e-6, rtol=0)

def test_the_bank_holds_the_mean_colour_and_the_embeddings(here):
    from oacl.encoders import load_pretrained
    photos('photos', 8)
    found_by('photos', 'found')
    bank = torch.load('found/bank.pt', weights_only=True)
    encoder, projector = load_pretrained('scenes')
    colours = []
    with torch.no_grad():
        for id, embedding in zip(bank['ids'], bank['embeddings'], strict=True):
            image = Image.open(Path('photos')/id)
            if image.size == (64, 40): image = image.resize((48, 32), Image.Resampling.BICUBIC)      # 51.2, of 8
            pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None]/255
            colours.append(pixels.mean((2, 3))[0])
            torch.testing.assert_close(projector(encoder.features(pixels).mean((2, 3)))[0], embedding, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(colours).mean(0), bank['colour'], atol=1e-5, rtol=0)

def test_one_more_picture_changes_no_other(here, monkeypatch):
    from oacl import localize as module
    photos('photos', 14)
    shutil.copytree('photos', 'more')
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save('more/0/0000.png')      # among the first of its shape: all batches are cut elsewhere
    order = module.bank_order
    monkeypatch.setattr(module, 'bank_order', lambda ids: [row for row in order(ids) if ids[row] != '0/0000.png'])
    for folder in ('photos', 'more'): found_by(folder, f'found-{folder}', bank_size=14)
    for path in Path('found-photos/masks').rglob('*.png'):
        one, other = (np.asarray(Image.open(name)).astype(int) for name in (path, 'found-more'/path.relative_to('found-photos')))
        assert np.abs(one - other).max() <= 1
    one, other = (Path(f'found-{folder}/boxes.txt').read_text().splitlines() for folder in ('photos', 'more'))
    assert len(other) == len(one) + 1
    from oacl.masks import load_boxes
    one, other = load_boxes('found-photos/boxes.txt'), load_boxes('found-more/boxes.txt', list(load_boxes('found-photos/boxes.txt')))
    for id in one: torch.testing.assert_close(one[id], other[id], atol=1.5/32, rtol=0)

@pytest.mark.parametrize('masks, boxes, runs', [((2, 2), (2, 2), 1), ((1, 2), (3, 2), 1), ((3, 2), (3, 1), 2), (None, (2, 1), 1)])
def test_maps_are_computed_once_where_one_run_will_do(here, monkeypatch, masks, boxes, runs):
    from oacl import localize as module
    photos('photos', 4)
    calls, contracam = [], module.contracam
    monkeypatch.setattr(module, 'contracam', lambda *args, **options: calls.append(len(args[2])) or contracam(*args, **options))
    wanted = {name: None if value is None else dict(iters=value[0], upscale=value[1]) for name, value in (('masks', masks), ('boxes', boxes))}
    found_by('photos', 'found', **wanted)
    assert len(calls) == runs*(1 + 3)                                       # once in the rehearsal, then for three shapes
    assert Path('found/masks').exists() == (masks is not None)

def test_boxes_alone_and_masks_alone(here, said):
    photos('photos', 6)
    for option, there, absent in (('--boxes-only', 'boxes.txt', 'masks'), ('--masks-only', 'masks', 'boxes.txt')):
        code, out, err = said('localize', 'photos', '--out', option, *FEW, option)
        assert (code, err) == (0, '') and there in out and absent not in out
        assert (here/option/there).exists() and not (here/option/absent).exists()
    one_line(*said('localize', 'photos', '--out', 'new', *FEW, '--boxes-only', '--masks-only'), '--boxes-only')

def test_options_of_the_score_and_the_fit_arrive(here, said):
    photos('photos', 6)
    options = ['--fit', 'squeeze', '--temperature', .5, '--formula', 'published', '--tolerance', .01, '--iters', 4, '--upscale', 2, '--threshold', .4, '--margin', 0]
    assert said('localize', 'photos', '--out', 'found', *FEW, *options)[0] == 0
    asked = json.loads((here/'found/localize.json').read_text())['asked']
    assert {'fit': 'squeeze', 'temperature': .5, 'formula': 'published', 'tolerance': .01, 'size': 32, 'batch_size': 4}.items() <= asked.items()
    assert asked['masks'] == asked['boxes'] == dict(iters=4, upscale=2) and {'threshold': .4, 'margin': 0}.items() <= asked['extract'].items()
    one_line(*said('localize', 'photos', '--out', 'new', *FEW, '--fit', 'crop'), 'squeeze')
    assert not (here/'new').exists()

def test_refined_maps(here, said):
    pytest.importorskip('pydensecrf', reason='needs the extra crf')
    photos('photos', 4)
    for name, option in (('plain', []), ('refined', ['--crf'])): assert said('localize', 'photos', '--out', name, *FEW, *option)[0] == 0
    plain, refined = (np.asarray(Image.open(here/name/'masks/0/000.png'), float) for name in ('plain', 'refined'))
    sure = lambda mask: ((mask < 26) | (mask > 229)).mean()
    assert sure(refined) > sure(plain) and sure(refined) > .9               # the field makes up its mind

# ---- streaming

def test_few_pictures_are_held_at_once(here):
    from oacl.localize import Photos
    photos('photos', 120)
    held, most, lock = [0], [0], threading.Lock()
    class Counted(Photos):
        def read(self, row, shape):
            picture = super().read(row, shape)
            with lock: held[0] += 1; most[0] = max(most[0], held[0])
            weakref.finalize(picture, self.gone)
            return picture
        def gone(self): held[0] -= 1
    found_by('photos', 'found', kind=Counted, bank_size=8, workers=3)
    assert most[0] <= max(8, 3*4) + 4 and held[0] <= 4

# ---- stopped and continued

def test_a_killed_run_continues_exactly(here, said):
    photos('photos', 240)
    arguments = ['localize', 'photos', *FEW, '--iters', 6, '--upscale', 2]
    process = start(*command(*arguments, '--out', 'killed'), cwd=here)
    wait_for(here/'killed/localize.parts/000004.txt', process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = [line.split(' ')[0] for part in (here/'killed/localize.parts').glob('*.txt') for line in part.read_text().splitlines()]
    assert 4 <= len(finished) < 240 and not (here/'killed/boxes.txt').exists()
    before = {path: time for path, time in times(here/'killed/masks').items() if path.relative_to(here/'killed/masks').as_posix() in finished}
    assert len(before) == len(finished)
    one_line(*said(*arguments, '--out', 'killed'), '--resume', '--overwrite')
    assert said(*arguments, '--out', 'killed', '--resume')[0] == 0
    assert before.items() <= times(here/'killed/masks').items()             # not computed again
    assert said(*arguments, '--out', 'straight')[0] == 0
    assert files('killed') == files('straight')

def test_ctrl_c_says_how_to_continue(here, said):
    photos('photos', 480)
    arguments = ['localize', 'photos', *FEW, '--iters', 10, '--out', 'found']
    process = start(*command(*arguments), cwd=here)
    wait_for(here/'found/localize.parts/000002.txt', process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130 and out == '' and err.count('\n') == 1 and 'of 480 images' in err and '--resume' in err
    code, out, err = said(*arguments, '--resume')
    assert (code, err) == (0, '') and 'in 480 images' in out

def test_a_finished_run_has_nothing_left_to_do(here, said):
    photos('photos', 8)
    arguments = ['localize', 'photos', *FEW, '--out', 'found', '--resume']   # where there is nothing to continue, it begins
    assert said(*arguments)[0] == 0
    before, when = files('found'), times('found')
    assert said(*arguments)[0] == 0 and files('found') == before and times('found') == when

def test_another_run_is_not_continued(here, said):
    from oacl.encoders import save_pretrained
    photos('photos', 40)
    photos('large', 6, scale=8)
    arguments = ['localize', 'photos', *FEW, '--out', 'found']
    with full_disk(5000): one_line(*said('localize', 'large', *FEW, '--out', 'found'), 'cannot write')
    assert (here/'found/localize.parts/plan.json').exists()
    one_line(*said(*arguments, '--resume'), 'images 6 -> 40', '--overwrite')
    assert said(*arguments, '--overwrite')[0] == 0
    before = files('found')
    for option in (['--iters', 9], ['--batch-size', 5], ['--threshold', .3], ['--formula', 'published'], ['--fit', 'squeeze'], ['--boxes-only']):
        one_line(*said(*arguments, '--resume', *option), ' -> ', '--overwrite')
    Image.new('RGB', (32, 32)).save('photos/0/new.png')
    one_line(*said(*arguments, '--resume'), 'images 40 -> 41')
    Path('photos/0/new.png').unlink()
    Path('photos/0/000.png').rename('photos/0/renamed.png')
    one_line(*said(*arguments, '--resume'), 'ids')
    Path('photos/0/renamed.png').rename('photos/0/000.png')
    state = torch.load(Path(sys.modules['oacl'].__file__).parent/'weights/scenes.pt', weights_only=True)['networks']
    weight = next(value for value in state['projector'].values() if value.is_floating_point())
    weight.view(-1)[0] += 1
    save_pretrained('other.pt', state, {})
    one_line(*said(*arguments, '--resume', '--checkpoint', 'other.pt'), 'weights')
    assert files('found') == before

def test_a_full_disk_leaves_a_run_to_continue(here, said):
    photos('photos', 12)
    photos('large', 12, scale=8)
    shutil.copy('large/2/011.png', 'photos/2/011.png')                      # the mask of the last is larger than the disk
    arguments = ['localize', 'photos', *FEW, '--iters', 1]
    with full_disk(9000): one_line(*said(*arguments, '--out', 'full'), 'cannot write', '011.png')
    assert [path for path in Path('full').rglob('.*')] == []
    before = times('full/masks')
    assert said(*arguments, '--out', 'full', '--resume')[0] == 0
    assert said(*arguments, '--out', 'straight')[0] == 0
    assert files('full') == files('straight')
    assert before

# ---- shared

def torchrun(count, *arguments, cwd, threads=1):
    "Run the package with several processes: (return code, stdout, stderr)."
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(count), *map(str, arguments)],
                          cwd=cwd, env=environment() | dict(OMP_NUM_THREADS=str(threads)), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr

def test_two_processes_find_the_same_bytes(here, said):
    photos('photos', 50)                                                    # batches of 4, and some of 1 to 3
    Path('photos/0/003.png').write_bytes(Path('photos/0/003.png').read_bytes()[:200])
    arguments = ['localize', 'photos', *FEW, '--iters', 2]
    code, out, err = torchrun(2, '-m', 'oacl', *arguments, '--out', 'two', cwd=here)
    assert code == 0 and out.count('\n') == 1 and err.count('1 files could not be read') == 1, err
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert said(*arguments, '--out', 'one')[0] == 0
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)
    assert files('two') == files('one') and len(files('one')) == 49 + 3

DIES = '''
import os, sys
from oacl.data import find_images
from oacl.localize import Photos, localize
class Dies(Photos):
    reads = 0
    def read(self, row, shape):
        Dies.reads += 1
        if os.environ['RANK'] == '1' and Dies.reads > 20: os._exit(7)
        return super().read(row, shape)
localize(Dies(find_images('photos'), size=32), 'scenes', 'shared', batch_size=4, device='cpu')
'''

def test_a_process_that_dies_ends_the_run(here):
    photos('photos', 80)
    Path('dies.py').write_text(DIES)
    code, out, err = torchrun(2, 'dies.py', cwd=here)
    assert code != 0 and 'exitcode' in err and not Path('shared/boxes.txt').exists()
    before = times('shared/masks')
    assert 20 <= len(before) < 80
    found_by('photos', 'shared', resume=True)
    found_by('photos', 'straight')
    assert files('shared') == files('straight')

def test_what_is_refused_is_refused_once(here):
    photos('photos', 1)
    code, out, err = torchrun(2, '-m', 'oacl', 'localize', 'photos', '--out', 'new', *FEW, cwd=here)
    assert code != 0 and err.count('oacl: 1 of 1 images can be read') == 1 and not Path('new').exists()

# ---- bad files, bad names

def test_broken_files_are_named(here, said):
    photos('photos', 10)
    Path('photos/0/000.png').write_bytes(b'')
    Path('photos/1/001.png').write_bytes(Path('photos/1/001.png').read_bytes()[:300])       # the header is fine
    Path('photos/2/text.jpg').write_text('no picture')
    code, out, err = said('localize', 'photos', '--out', 'found', *FEW)
    assert code == 0 and 'in 8 images' in out
    assert err.count('\n') == 1 and '3 files could not be read' in err and '0/000.png' in err
    found = json.loads((here/'found/localize.json').read_text())
    assert [id for id, reason in found['broken'] if reason] == ['0/000.png', '1/001.png', '2/text.jpg'] and found['broken'][0][1] == 'the file is empty'
    ids = [line.split(' ')[0] for line in (here/'found/boxes.txt').read_text().splitlines()]
    assert ids == sorted(ids) and len(ids) == 8 == len(times('found/masks')) and not set(ids) & {id for id, _ in found['broken']}

def test_a_folder_without_two_pictures_is_refused(here, said):
    photos('photos', 3)
    for path in Path('photos').rglob('*.png'): path.write_bytes(path.read_bytes()[:120])
    one_line(*said('localize', 'photos', '--out', 'new', *FEW), '0 of 3 images', 'at least two')
    picture = Image.new('RGB', (32, 32), 'red')
    picture.save('photos/0/000.png')
    one_line(*said('localize', 'photos', '--out', 'new', *FEW), '1 of 3 images', 'at least two')
    assert not (here/'new').exists()

def test_ids_that_lead_out_of_the_folder_are_refused(here):
    from oacl.core import DataError
    from oacl.data import Images
    from oacl.localize import Photos, localize
    photos('photos', 4)
    outside = Images(Path('photos'), ['0/000.png', '../photos/1/001.png'], None, None, None)
    with pytest.raises(DataError, match='no place'): localize(Photos(outside, 32), 'scenes', 'found', device='cpu')
    assert not Path('found').exists()
    Path('found/masks').mkdir(parents=True)
    Path('found/masks/1').symlink_to(here/'photos', target_is_directory=True)
    before = files('photos')
    with pytest.raises(DataError, match='through a link'): found_by('photos', 'found')
    assert files('photos') == before and [path.name for path in Path('found').iterdir()] == ['masks']

def test_names_that_no_boxes_file_can_hold_are_refused(here, said):
    photos('photos', 4)
    Path('photos/0/000.png').rename('photos/0/two\nlines.png')
    one_line(*said('localize', 'photos', '--out', 'new', *FEW), 'rename the image')
    assert not (here/'new').exists()

def test_masks_do_not_go_among_the_images(here, said):
    photos('photos', 4)
    one_line(*said('localize', 'photos', '--out', 'photos/found', *FEW), 'inside the data folder')
    assert not (here/'photos/found').exists()

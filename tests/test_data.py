"Data as people have it: caches that several processes share, disks that are full, work that is killed, real photos, other ways to start processes."
import sys, time
from pathlib import Path

import pytest
import torch

from conftest import command, ended, files, full_disk, one_line, start

from oacl.core import InputError, RunError
from oacl.data import find_images
from oacl.datasets import open_dataset, to_nine, write_miniature
from oacl.derived import make_coco_crop
from oacl.loading import DiskData

# ---- the cache

READ = """
import sys, time, torch
from oacl.data import find_images
from oacl.loading import DiskData
if __name__ == '__main__':
    while time.time() < float(sys.argv[3]): time.sleep(.001)
    data = DiskData(find_images(sys.argv[1]), 32, cache=sys.argv[2], workers=1)
    print(float(next(data.batches([(0, torch.arange(16))]))['images'].double().sum()))
"""

@pytest.fixture
def photos(here):
    return write_miniature('folder', here/'photos', per_class=8, size=48)

def test_processes_share_one_cache(photos, here):
    at = str(time.time() + 4)
    running = [start(sys.executable, '-c', READ, photos, here/'cache', at, cwd=here) for _ in range(2)]
    sums = {ended(process)[:2] for process in running}
    assert len(sums) == 1 and sums.pop()[0] == 0
    assert sorted(files(here/'cache')) == ['cache.json', 'images.npy', 'lock', 'shapes.npy']     # and nothing half written

def test_a_killed_cache_is_made_again(photos, here):
    process = start(sys.executable, '-c', READ.replace("import sys, time, torch", "import sys, time, torch, oacl.loading as l\n"
                    "slow = l._Reader.image\nl._Reader.image = lambda self, row: (time.sleep(.05), slow(self, row))[1]"), photos, here/'cache', '0', cwd=here)
    for _ in range(2000):
        if list((here/'cache').glob('.images.npy.*')): break
        time.sleep(.01)
    process.kill(), process.communicate()
    assert not (here/'cache/cache.json').exists()
    data = DiskData(find_images(photos), 32, cache=here/'cache', workers=1)
    [plain], [cached] = (list(source.batches([(0, torch.arange(64))])) for source in (DiskData(find_images(photos), 32, workers=1), data))
    assert torch.equal(plain['images'], cached['images'])
    assert not list((here/'cache').glob('.*'))

def test_a_full_disk_leaves_no_cache(photos, here):
    with full_disk(100_000), pytest.raises(RunError, match='free some space'):
        DiskData(find_images(photos), 64, cache=here/'cache', workers=1)
    assert not (here/'cache/cache.json').exists() and not (here/'cache/images.npy').exists()

def test_a_disk_too_small_is_refused_before_anything_is_decoded(photos, here, monkeypatch):
    import collections, shutil
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: collections.namedtuple('usage', 'total used free')(10, 10, 10))
    with pytest.raises(RunError, match='needs .* GB'): DiskData(find_images(photos), 64, cache=here/'cache', workers=1)

# ---- processes

SPAWNED = """
import multiprocessing, sys, torch
from oacl.datasets import open_dataset
from oacl.loading import DiskData
if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    birds, plan = open_dataset('cub', sys.argv[1], 'train'), [(0, torch.arange(8)), (1, torch.arange(8, 16))]
    for a, b in zip(DiskData(birds, 32, workers=1, processes=True, cache=sys.argv[2]).batches(plan), DiskData(birds, 32, workers=1).batches(plan)):
        assert torch.equal(a['images'], b['images']) and torch.equal(a['rows'], b['rows'])
    print('same')
"""

def test_spawned_workers_read_the_same(here):
    "As on macOS and Windows, where a worker gets its reader by pickling."
    write_miniature('cub', here, size=48)
    assert ended(start(sys.executable, '-c', SPAWNED, here, here/'cache', cwd=here)) == (0, 'same\n', '')

def test_a_reader_that_travels_carries_no_pixels(photos, here):
    import pickle
    reader = DiskData(find_images(photos), 64, cache=here/'cache', workers=1).reader
    reader.image(0)
    assert len(pickle.dumps(reader)) < 20_000

# ---- commands

def test_a_missing_file_is_one_line_and_the_tree_is_shown(said, here):
    home = write_miniature('flowers', here, classes=2)
    (home/'setid.mat').unlink()
    code, out, err = said('data', 'check', 'flowers', here)
    one_line(code, '', err, 'setid.mat is missing')
    assert 'imagelabels.mat  setid.mat' in out

def test_commands_refuse_in_one_line(said, here):
    write_miniature('coco', here, classes=2)
    for words, named in ((('make', 'coco-crop', here/'nowhere'), 'COCO'), (('make', 'background-challenge', 'coco', here, '--split', 'val', '--out', here/'x'), 'no labels'),
                         (('boxes', 'cub', here, '--out', here/'b.txt'), 'CUB_200_2011'), (('miniature', 'coco', here), 'not empty'), (('list', 'coca'), 'unknown data set'),
                         (('shards', here/'COCO/annotations', '--out', here/'s'), 'no image')):
        one_line(*said('data', *words), named)

def test_crops_that_were_killed_are_finished(here):
    write_miniature('coco', here, per_class=12, size=96, classes=4)
    whole = here/'whole'
    make_coco_crop(here, whole, size=32)
    process = start(*command('data', 'make', 'coco-crop', here, '--out', here/'killed', '--size', 32, '--workers', 1), cwd=here)
    while process.poll() is None and len(list((here/'killed').rglob('*.jpg'))) < 5: time.sleep(.002)
    process.kill(), process.communicate()
    make_coco_crop(here, here/'killed', size=32)
    left = [name for name in files(here/'killed') if Path(name).name.startswith('.') and name != '.oacl.json']
    there = {name: text for name, text in files(here/'killed').items() if name not in left}
    assert there == files(whole) and len(left) <= 1                                             # a file that was being written may be left, hidden

def test_nothing_is_written_over(said, here):
    write_miniature('cub', here, classes=2)
    (here/'mine').mkdir(); (here/'mine/notes.txt').write_text('x')
    for words in (('make', 'background-challenge', 'cub', here, '--out', here/'mine'), ('shards', here/'CUB_200_2011/images', '--out', here/'mine')):
        one_line(*said('data', *words), 'not empty')
    assert list(files(here/'mine')) == ['notes.txt']

# ---- real photos

def test_coco_masks_agree_with_pycocotools(shared):
    from pycocotools.coco import COCO
    data = open_dataset('coco', shared/'data/coco-mini', 'val')
    import contextlib, io
    with contextlib.redirect_stdout(io.StringIO()): theirs = COCO(str(shared/'data/coco-mini/annotations/instances_val2017.json'))
    for i in range(0, len(data), 9):
        number = int(Path(data.ids[i]).stem)
        found = theirs.loadAnns(theirs.getAnnIds(imgIds=number))
        union = sum(torch.from_numpy(theirs.annToMask(one)).int() for one in found) > 0
        assert torch.equal(data.mask(i) == 1, union) and data.mask(i).shape == data.image(i).shape[1:]
        assert len(data.boxes(i)) == sum(not one['iscrowd'] for one in found)

def test_coco_train_images_without_objects(shared):
    data = open_dataset('coco', shared/'data/coco-mini', 'train')
    for number in (250, 508):
        i = data.ids.index(f'train2017/{number:012d}.jpg')
        assert data.mask(i).sum() == 0 and data.boxes(i).shape == (0, 4) and len(data.box_labels(i)) == 0

def test_imagenette_is_a_subset_of_imagenet(shared):
    data = open_dataset('imagenet', shared/'data/imagenette-mini', 'val')
    assert len(data) == 600 and data.classes[0] == 'n01440764' and data.labels.bincount().tolist() == [60]*10
    with pytest.raises(InputError, match='wnids='): to_nine(data, torch.tensor([8]))                # ten folders do not say which of the thousand they are
    table = torch.full((11,), -1)
    table[[0, 2]] = torch.tensor([8, 0])
    nine = to_nine(data, table, ['n01440764', 'n01443537', *data.classes[1:]])
    assert nine.kept == dict(classes=2, of_classes=10, images=120, of_images=600, superclasses=['dog', 'fish'])

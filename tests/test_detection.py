"Detection on real photographs in COCO's official files, and the commands around it."
import json

import numpy as np
import pytest
import torch
from conftest import one_line

from oacl.core import DataError
from oacl.datasets import open_dataset, write_miniature
from oacl.encoders import encoder
from oacl.eval.detection import Instances, average_precision, coco_results, detector, evaluate_detector, train_detector

SMALL = dict(min_size=96, max_size=128, rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20, rpn_pre_nms_top_n_train=200, rpn_pre_nms_top_n_test=100, box_batch_size_per_image=32)

@pytest.fixture(scope='module')
def photographs(shared):
    home = shared/'data/coco-mini'
    if not home.is_dir(): pytest.skip('needs ../shared/data/coco-mini (100 photographs of COCO with their annotations), which is not here')
    return [open_dataset('coco', home, split).subset(range(4)) for split in ('train', 'val')]

@pytest.mark.parametrize('head', ['fpn', 'c4'])
def test_the_whole_chain_on_photographs(photographs, head):
    "Crowds, many sizes, 80 classes whose numbers have gaps: from the annotation file to AP of boxes and masks."
    torch.manual_seed(0)
    learn, check = (Instances(part, masks=True) for part in photographs)
    found = detector(encoder('resnet8', widths=(8, 16, 32)), learn.classes, head, masks=True, channels=16, **SMALL)
    log = train_detector(found, learn, steps=2, batch_size=2, warmup=0)
    assert len(log) == 2 and all(np.isfinite(line['loss']) and line['loss_mask'] > 0 for line in log)
    score = evaluate_detector(found, check)
    assert len(learn.classes) == 80 and max(learn.categories) == 90
    assert score['images'] == 4 and 0 <= score['box']['AP'] <= 100 and 0 <= score['mask']['AP'] <= 100

def test_the_true_objects_score_100_and_their_crowds_do_not_count(photographs):
    "Also with COCO's own evaluation, on the same results."
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from oacl.eval.detection import _coco_stats
    check = Instances(photographs[1], masks=True)
    perfect = [dict(image_id=one['image_id'], category_id=one['category_id'], bbox=one['bbox'], score=1., segmentation=one['segmentation'])
               for objects in check.objects for one in objects]
    for kind in ('bbox', 'segm'):
        assert average_precision(check.record, perfect, kind)['AP'] == pytest.approx(100)
        half = perfect[::2]
        ours, theirs = average_precision(check.record, half, kind), _coco_stats(COCO, COCOeval, check.record, half, kind)
        assert ours['AP'] < 100 and ours['AP'] == pytest.approx(100*theirs[0], abs=1e-6)

def test_results_name_their_pictures(here):
    "Whatever the sizes and the batches: each detection lies in the picture it is said to be in."
    torch.manual_seed(0)
    check = Instances(open_dataset('coco', write_miniature('coco', here, per_class=1, size=96, classes=3), 'val'))
    found = detector(encoder('resnet8', widths=(8, 16, 32)), check.classes, channels=16, **SMALL)
    together, alone = (coco_results(found, check, batch_size) for batch_size in (3, 1))
    sizes = {image['id']: (image['width'], image['height']) for image in check.record['images']}
    assert {one['image_id'] for one in together} == {one['image_id'] for one in alone} == set(sizes) and len(set(sizes.values())) > 1
    for one in together + alone:
        (x, y, w, h), (width, height) = one['bbox'], sizes[one['image_id']]
        assert min(x, y, w, h) >= 0 and x + w <= width + .01 and y + h <= height + .01

def test_reading_in_another_process_changes_nothing_and_says_as_much(here):
    home = write_miniature('coco', here, per_class=1, size=64, classes=3)
    learn = Instances(open_dataset('coco', home, 'train'))
    def losses(workers):
        torch.manual_seed(0)
        found = detector(encoder('resnet8', widths=(8, 16, 32)), learn.classes, channels=16, **SMALL)
        return [line['loss'] for line in train_detector(found, learn, steps=2, batch_size=2, workers=workers)]
    assert losses(0) == losses(1)
    for path in (home/'train2017').iterdir(): path.write_bytes(b'')
    for workers in (0, 1):
        with pytest.raises(DataError) as error: losses(workers)
        assert len(str(error.value).splitlines()) == 1 and 'train2017' in str(error.value)

def test_the_command_trains_resumes_and_refuses(said, here):
    home = write_miniature('coco', here/'data', per_class=2, size=64, classes=3)
    options = ['--arch', 'resnet8', '--steps', 2, '--min-size', 64, '--max-size', 64, '--channels', 16, '--device', 'cpu']
    code, out, err = said('detect', 'train', home, '--out', 'run', *options)
    assert code == 0 and 'AP50' in out and '6 images, 6 objects' in out, (out, err)
    score = json.loads((here/'run/results.json').read_text())
    assert score['head'] == 'fpn' and json.loads((here/'run/config.json').read_text())['encoder'] == 'resnet8, random'
    assert said('detect', 'train', home, '--out', 'run', '--resume', *options)[0] == 0
    one_line(*said('detect', 'train', home, '--out', 'run', *options), 'run is not empty', '--resume')
    one_line(*said('detect', 'train', home, '--out', 'other', '--resume', *options, '--arch-head', 'c5'), 'c5', 'fpn', 'c4')
    one_line(*said('detect', 'train', home, '--out', 'other', *options[2:], '--arch', 'vit_b_32'), 'VisionTransformer', 'no stages')
    one_line(*said('detect', 'train', home, '--out', 'other', *options, '--schedule', 'coco-9x'), 'coco-9x', 'coco-2x')
    one_line(*said('detect', 'train', here/'nothing', '--out', 'other', *options), 'there is no folder')
    file = home/'annotations/instances_train2017.json'
    file.write_text(file.read_text()[:-20])
    one_line(*said('detect', 'train', home, '--out', 'other', *options), 'instances_train2017.json', 'cut off')

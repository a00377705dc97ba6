"The evaluation suites from end to end: the embedded world in official layouts, real photos, golden numbers, and what must be refused."
import json, shutil

import numpy as np
import pytest
import torch

from conftest import one_line
from oacl.datasets import write_miniature
from oacl.eval.localization import LocalizationMeter, localization_scores, max_box_acc, max_box_acc_v2, pxap
from oacl.eval.probe import evaluate_probe, linear_probe, unpack
from oacl.eval.suites import SUITES, evaluate_all

SETS = ('cifar10', 'cifar100', 'cub', 'flowers', 'food', 'pets', 'coco', 'coco-crop', 'imagenet9', 'imagenet', 'voc', 'imagenet-r', 'imagenet-sketch', 'stylized', 'objectnet', 'si-score')
QUICK = '--size', 48, '--iters', 2, '--upscale', 1, '--device', 'cpu'

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "The embedded world as every data set, in the official layouts."
    root = tmp_path_factory.mktemp('data')
    for name in SETS: write_miniature(name, root, per_class=3 if name in ('pets', 'cub', 'flowers', 'imagenet9') else 2, size=48)
    write_miniature('imagenet-c', root, per_class=1, size=48)
    return root

@pytest.fixture(scope='module')
def all_of_it(world, tmp_path_factory):
    "(record, what was said, folder) of every suite on the embedded world."
    pytest.importorskip('pycocotools', reason='masks of COCO need pycocotools (oacl[coco])')
    out, said = tmp_path_factory.mktemp('evaluation'), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OACL_QUIET', '1')
        record = evaluate_all('scenes', world, out, say=said.append, size=48, iters=2, upscale=1, most=24, device='cpu')
    return record, said, out

# ---- every suite

def test_every_suite_runs_on_the_embedded_world(all_of_it):
    record, said, out = all_of_it
    assert list(record['suites']) == list(SUITES) and not record['missing'] and not record['failed']
    assert {path.name for path in out.iterdir()} == {'features', 'figures', 'report.html', 'results.json', 'results.md', 'results.tex', 'suites'}
    assert {path.stem for path in (out/'figures').iterdir()} == {'figures', 'imagenet-c', 'proposals'}
    assert json.loads((out/'results.json').read_text())['suites'].keys() == record['suites'].keys()

def test_figures_are_above_chance_where_the_encoder_knows_the_world(all_of_it):
    suites = all_of_it[0]['suites']
    known = [suites[f'probe/{name}']['knn']['accuracy'] for name in ('cifar10', 'food', 'pets', 'cub')]
    assert sum(known)/4 > 20                                                      # eight classes; the checkpoint was trained on this world
    assert suites['backgrounds']['variants']['original']['accuracy'] > 100/9
    assert suites['localization/pets']['mask_iou'] > .3

def test_shifts_are_never_shown_without_what_they_are_of(all_of_it):
    record, said, out = all_of_it
    table = (out/'results.md').read_text().splitlines()
    for name in ('sketch', 'stylized', 'r', 'c', 'objectnet', 'si-score'):
        kept = record['suites'][f'shift/{name}']['kept']
        text = f"{kept['classes']} of {kept['of_classes']} classes"
        assert any(f'shift/{name}' in line and text in line for line in table)
        assert any(f'shift/{name}' in line and text in line for line in said)

def test_image_by_image_results_agree_with_the_accuracy(all_of_it):
    for name, result in all_of_it[0]['suites'].items():
        if not name.startswith('probe/'): continue
        for probe in ('knn', 'linear'): assert 100*unpack(result[probe]['correct']).double().mean() == pytest.approx(result[probe]['accuracy'])

def test_commands(said, world, all_of_it, tmp_path):
    code, out, err = said('evaluate', 'probe', 'pets', world, '--size', 48, '--k', 5, '--device', 'cpu', '--out', tmp_path/'pets.json')
    assert code == 0 and 'k-NN' in out and 'linear' in out, err
    assert json.loads((tmp_path/'pets.json').read_text())['knn']['k'] == 5
    code, out, err = said('evaluate', 'localization', 'pets', world, *QUICK, '--most', 6)
    assert code == 0 and 'MaxBoxAccV2' in out and 'PxAP' in out, err
    code, out, err = said('evaluate', 'backgrounds', world, '--size', 48, '--adversarial', '--most', 4, '--device', 'cpu')
    assert code == 0 and 'backgrounds each' in out, err
    code, out, err = said('evaluate', 'shift', 'objectnet', world, '--size', 48, '--device', 'cpu')
    assert code == 0 and 'superclasses, only' in out, err
    folder = all_of_it[2]
    code, out, err = said('report', 'compare', folder, folder, '--out', tmp_path/'comparison')
    assert code == 0 and '| probe/pets | linear |' in out and 'p = 1' in out and (tmp_path/'comparison'/'report.html').exists(), err

def test_all_says_what_it_does_not_find_and_goes_on(said, world, tmp_path):
    root = tmp_path/'data'
    root.mkdir()
    shutil.copytree(world/'oxford-iiit-pet', root/'oxford-iiit-pet')
    arguments = ['evaluate', 'all', '--checkpoint', 'scenes', '--data-root', root, '--out', tmp_path/'out', *QUICK]
    code, out, err = said(*arguments)
    assert code == 0 and 'not found: probe/cub' in out and 'localization/pets' in out, err
    assert 'was there' in said(*arguments)[1]
    (root/'oxford-iiit-pet/annotations/test.txt').write_text('Square_1 1 1\n')            # cut off
    code, out, err = said(*arguments, '--overwrite', '--suite', 'probe/pets')
    assert code == 2 and 'failed' in out and err.startswith('oacl: ') and err.count('\n') == 1

# ---- real photos

def test_real_photos(shared, monkeypatch, tmp_path):
    "Imagenette's real photos through the probes, COCO's through localization."
    monkeypatch.setenv('OACL_QUIET', '1')
    from oacl.encoders import load_pretrained
    from oacl.eval.localization import evaluate_localization
    networks = load_pretrained('scenes')
    root = tmp_path/'imagenet'
    for split, most in (('train', 20), ('val', 8)):
        for folder in sorted((shared/'data/imagenette-mini'/split).iterdir()):
            (root/split/folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:most]: (root/split/folder.name/path.name).symlink_to(path)
    found = evaluate_probe(networks[0], 'imagenet', root, size=64, cache=tmp_path/'features')
    assert (found['test_images'], found['classes']) == (80, 10) and found['linear']['accuracy'] > 10, found
    pytest.importorskip('pycocotools', reason='masks of COCO need pycocotools (oacl[coco])')
    maps = evaluate_localization(*networks, 'coco', shared/'data/coco-mini', size=64, iters=2, upscale=1, most=24)
    assert maps['objects'] > maps['images'] and 0 < maps['mask_iou'] < 1 and maps['proposals'][0]['recall'] >= maps['proposals'][2]['recall']

# ---- numbers of others

def test_streamed_scores_are_those_of_the_benchmark(shared):
    path = shared/'goldens'/'wsol.npz'
    if not path.exists(): pytest.skip('needs ../shared/goldens/wsol.npz, which is not here')
    stored = np.load(path)
    cams = torch.from_numpy(stored['scoremaps'].astype(np.float32))[:, None]
    pixels = [torch.from_numpy(boxes[(boxes >= 0).all(1)]).double() for boxes in stored['gt_boxes_224']]
    masks, meter = torch.from_numpy(stored['gt_mask'])[:, None], LocalizationMeter()
    for rows in (slice(0, 5), slice(5, 12)): meter.add(cams[rows], masks[rows], [boxes/224 for boxes in pixels[rows]])
    for name, theirs in (('single', 'single_best_iou'), ('every', 'multi_best_iou')):
        np.testing.assert_allclose(meter.table(name), stored[theirs], atol=1e-6, rtol=0)
    found = localization_scores(meter, meter)
    assert found['max_box_acc'] == pytest.approx(max_box_acc(cams, pixels), abs=1e-6)
    assert found['max_box_acc_v2'] == pytest.approx(max_box_acc_v2(cams, pixels), abs=1e-6)
    assert found['pxap'] == pytest.approx(pxap(cams, masks), abs=1e-6)
    for cam, mask, theirs in zip(cams, masks, stored['pxap_per_image_step0.01']): assert pxap(cam[None], mask[None], .01) == pytest.approx(theirs, abs=1e-6)

def test_the_linear_probe_is_scikit_learns():
    model = pytest.importorskip('sklearn.linear_model', reason='scikit-learn is not installed')
    from oacl.bench import overlapping_classes
    (train, labels), (test, truth) = overlapping_classes(1200, 48, 10), overlapping_classes(3000, 48, 10, 1)
    for weight in (1., 1e-1, 1e-2, 1e-3):
        ours = linear_probe(train, labels, test, truth, weights=[weight])
        scaled = lambda features: ((features - ours.mean)/ours.deviation).numpy()
        theirs = model.LogisticRegression(C=1/(weight*len(train)), max_iter=3000, tol=1e-8).fit(scaled(train), labels.numpy())
        assert ours.val_accuracy == pytest.approx(100*theirs.score(scaled(test), truth.numpy()), abs=.2)

# ---- what must be refused

@pytest.mark.parametrize('command, missing', [
    (['probe', 'cub'], 'CUB_200_2011'), (['localization', 'flowers'], 'flowers-102'), (['backgrounds'], 'bg_challenge'), (['shift', 'sketch'], 'sketch')])
def test_missing_data_are_named_with_the_expected_tree(said, tmp_path, command, missing):
    code, out, err = said('evaluate', *command, tmp_path)
    assert code == 2 and err.startswith('oacl: ') and err.count('\n') == 1 and missing in err and missing in out

def test_a_missing_split_is_named(said, world, tmp_path):
    shutil.copytree(world/'bg_challenge', tmp_path/'bg_challenge')
    shutil.rmtree(tmp_path/'bg_challenge/mixed_next')
    code, out, err = said('evaluate', 'backgrounds', tmp_path)
    assert code == 2 and 'mixed_next/val is missing' in err and '<variant>/val/<class>' in out

def test_damaged_data_are_refused(said, world, tmp_path):
    shutil.copytree(world/'COCO', tmp_path/'COCO')
    annotations = tmp_path/'COCO/annotations/instances_val2017.json'
    annotations.write_bytes(annotations.read_bytes()[:-200])
    one_line(*said('evaluate', 'localization', 'coco', tmp_path, *QUICK), 'instances_val2017.json', 'cut off')
    shutil.copytree(world/'bg_challenge', tmp_path/'bg_challenge')
    next((tmp_path/'bg_challenge/fg_mask/val/00_dog').iterdir()).unlink()
    one_line(*said('evaluate', 'localization', 'imagenet9', tmp_path, *QUICK), 'mask', 'bg_challenge')
    for path in (tmp_path/'bg_challenge/only_fg/val/08_fish').iterdir(): path.unlink()
    one_line(*said('evaluate', 'backgrounds', tmp_path, '--size', 48, '--device', 'cpu'), 'only_fg', 'a class would be empty', 'fish')

def test_classes_in_another_order_are_refused(said, world, tmp_path):
    shutil.copytree(world/'imagenet', tmp_path/'imagenet')
    for split in ('train', 'val'): (tmp_path/'imagenet'/split/'n01440764').rename(tmp_path/'imagenet'/split/'fish')
    one_line(*said('evaluate', 'probe', 'imagenet', tmp_path), 'fish', 'is no wnid')

def test_a_head_of_the_wrong_width_is_refused(said, world, tmp_path):
    torch.save({'fc.weight': torch.zeros(7, 192), 'fc.bias': torch.zeros(7)}, tmp_path/'seven.pt')
    one_line(*said('evaluate', 'backgrounds', world, '--head', tmp_path/'seven.pt', '--size', 48, '--device', 'cpu'), 'has 7 outputs', 'expected 9')
    torch.save({'fc.weight': torch.zeros(9, 64), 'fc.bias': torch.zeros(9)}, tmp_path/'narrow.pt')
    one_line(*said('evaluate', 'backgrounds', world, '--head', tmp_path/'narrow.pt', '--size', 48, '--device', 'cpu'), 'reads 64 features', 'gives 192')

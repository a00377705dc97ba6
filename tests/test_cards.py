"What the shipped checkpoints are, and what their model cards claim, measured again on photographs where there are some."
import json

import pytest, torch

from oacl import cards
from oacl.checkpoints import load_checkpoint, shipped_weights
from oacl.encoders import encoder, load_pretrained

def test_shipped_networks_are_small_and_sound():
    assert {'photos', 'scenes'} <= set(shipped_weights())
    for name, file in shipped_weights().items():
        networks = load_pretrained(name)
        assert sum(parameter.numel() for network in networks for parameter in network.parameters()) < 3e6
        assert file.stat().st_size < 6e6
        assert all(bool(tensor.isfinite().all()) for network in networks for tensor in network.state_dict().values())
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(encoder(weights='photos')(images), load_pretrained('photos')[0](images))

def test_photos_says_how_it_was_made(said):
    code, out, _ = said('inspect', 'photos')
    assert code == 0 and 'patch_resnet' in out
    assert load_checkpoint('photos')['info']['command'].startswith('oacl pretrain ')

def test_a_name_that_is_not_shipped_is_told_those_that_are(said):
    code, out, err = said('inspect', 'phots')
    assert code == 2 and out == '' and err.count('\n') == 1 and 'photos, scenes' in err

def test_card_as_text_and_as_json(said, here, monkeypatch):
    few = cards.scene_objects, cards.scene_classes
    monkeypatch.setattr(cards, 'scene_objects', lambda n, seed: few[0](20, seed))
    monkeypatch.setattr(cards, 'scene_classes', lambda n, seed: few[1](80, seed))
    code, out, err = said('card', 'scenes', '--out', 'card.json')
    assert code == 0 and 'k-NN' in out and '| activation norm |' in out, err
    found = json.loads((here/'card.json').read_text())
    assert found['maps']['ContraCAM']['iou'] > found['maps']['centre box']['iou']

needs_photos = pytest.mark.skipif('photos' not in shipped_weights(), reason='needs the checkpoint photos')

@needs_photos
def test_photos_does_on_photographs_what_its_card_claims(shared):
    "Neighbours: better than untrained. Maps, refined with the CRF: ahead of untrained networks for certain, of the activation norm and of a box in the middle on these photographs."
    pytest.importorskip('pycocotools'); pytest.importorskip('pydensecrf', reason='needs the extra crf')
    networks, random = load_pretrained('photos'), cards.untrained('photos', 2)
    def contestants(truth):
        own = cards.contracam_scores(networks, truth, (128,), (1,), (3,), (.07,), crf=(.5,)) | cards.contracam_scores(networks, truth, (160,), (1,), (1,), (.07,), crf=(.5,))
        return {'ContraCAM': own, 'activation norm': cards.norm_scores(networks[0], truth, (160,), (1,), crf=(.3, .5)),
                'random weights': cards.contracam_scores(random, truth, (160,), (1,), (3,), (.07, 1.), crf=(.3,)), 'centre box': cards.box_scores(truth)}
    rows = cards.compare(*(contestants(cards.coco_objects(shared/'data/coco-mini', split)) for split in ('train', 'val')))
    assert rows['random weights']['iou_gain_interval'][0] > 0 and rows['random weights']['pointing_gain_interval'][0] > 0
    for rival in ('activation norm', 'centre box'): assert rows[rival]['iou_gain'] > 0 and rows[rival]['pointing_gain'] > 0, rows
    train, val = [(images[::3], labels[::3]) for images, labels in cards.folder_classes(shared/'data/imagenette-mini')]
    neighbours = cards.neighbour_scores({'trained': [networks[0]], 'random weights': [random[0]]}, train, val)
    assert neighbours['trained']['knn_interval'][0] > neighbours['random weights']['knn_interval'][1]

"Checkpoints that a notebook cell cannot hold: other libraries' files, attacks in processes of their own, and thousands of damaged ones."
import copy, random, subprocess, sys, zipfile

import pytest, torch, torchvision
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from oacl.checkpoints import LAYOUTS, inspect_checkpoint, load_checkpoint, read_networks
from oacl.core import CheckpointError, InputError
from oacl.encoders import load_pretrained

IMAGENET = torch.tensor([.485, .456, .406]).view(3, 1, 1), torch.tensor([.229, .224, .225]).view(3, 1, 1)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv('OACL_QUIET', '1')

def keyed(**parts): # the weights of modules under these names
    return {f'{name}.{key}': value for name, module in parts.items() for key, value in module.state_dict().items()}

def small_resnet(seed=0, width=8): # torchvision's own, of few weights
    torch.manual_seed(seed)
    block = torchvision.models.resnet.BasicBlock
    with torch.device('meta'): model = torchvision.models.ResNet(block, [1, 1, 1, 1])
    model.inplanes, model.fc = width, nn.Identity()
    model.conv1, model.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    for stage in range(1, 5): setattr(model, f'layer{stage}', model._make_layer(block, width, 1, stride=1 + (stage > 1)))
    model.train()(torch.rand(8, 3, 64, 64))                  # batch norm has seen something
    return model.eval()

def save(path, what, **how):
    torch.save(what, path, **how)
    return path

# ---- other libraries

@pytest.mark.parametrize('kind', ['ViT', 'Dinov2', 'Dinov2WithRegisters'])
def test_hugging_face(kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('timm'), pytest.importorskip('safetensors')
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128, image_size=32, patch_size=8)
    config = getattr(transformers, f'{kind}Config')(**sizes)
    model = getattr(transformers, f'{kind}Model')(config).eval()
    model.save_pretrained(tmp_path)
    images, skip = torch.rand(2, 3, 32, 32), 1 + getattr(config, 'num_register_tokens', 0)
    with torch.no_grad(): tokens = model((images - IMAGENET[0])/IMAGENET[1]).last_hidden_state[:, skip:]
    for path in (tmp_path/'model.safetensors', save(tmp_path/'memory.pt', model.state_dict()), save(tmp_path/'whole.pt', keyed(vit=model))):
        encoder, projector = load_pretrained(path)
        with torch.no_grad(): assert_close(encoder.features(images).flatten(2).mT, tokens, atol=1e-5, rtol=1e-5)
        assert [type(module).__name__ for module in projector] == ['Normalize']

def test_dinov2_chunked_with_registers_and_gates(tmp_path):
    timm = pytest.importorskip('timm')
    from timm.layers import SwiGLUPacked
    torch.manual_seed(0)
    sizes = dict(img_size=28, patch_size=7, embed_dim=64, depth=2, num_heads=1, num_classes=0, reg_tokens=3, no_embed_class=True, init_values=.1)
    model = timm.models.VisionTransformer(**sizes, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=2*128/64).eval()
    weights, token = model.state_dict(), torch.rand(1, 1, 64)
    rename = lambda key: key.replace('blocks.0', 'blocks.0.0').replace('blocks.1', 'blocks.0.1').replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3')
    given = {rename(key): value for key, value in weights.items()} | dict(mask_token=torch.zeros(1, 64))
    given['register_tokens'] = given.pop('reg_token')
    given['cls_token'], given['pos_embed'] = weights['cls_token'] - token, torch.cat([token, weights['pos_embed']], 1)
    encoder, _ = load_pretrained(save(tmp_path/'dinov2.pth', given))
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        tokens = model.forward_features((images - IMAGENET[0])/IMAGENET[1])[:, 4:]
        assert_close(encoder.features(images).flatten(2).mT, tokens, atol=1e-5, rtol=1e-5)
    assert '3 registers' in encoder.report.arch

def test_timm_by_its_tensors_and_by_name(tmp_path):
    timm = pytest.importorskip('timm')
    images = torch.rand(2, 3, 64, 64)
    for name, how in (('convnextv2_atto', {}), ('resnet18', {}), ('resnet26d', dict(arch='timm:resnet26d'))):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4).eval()
        encoder, _ = load_pretrained(save(tmp_path/'timm.pth', dict(state_dict=model.state_dict())), **how)
        with torch.no_grad(): assert_close(encoder.features(images), model.forward_features((images - IMAGENET[0])/IMAGENET[1]), atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match='conv1.weight; if it is another architecture'): load_pretrained(tmp_path/'timm.pth')

def test_without_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip('timm')
    path = save(tmp_path/'vit.pth', timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=0).state_dict())
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(CheckpointError, match=r"needs the package timm: pip install 'oacl\[models\]'"): load_pretrained(path)

def test_vissl_heads_in_a_row(tmp_path):
    model, (first, second) = small_resnet(), (nn.Linear(8, 6), nn.Linear(6, 4))
    state = dict(trunk=keyed(_feature_blocks=model), heads=keyed(**{'0.clf.0': first, '1.clf.0': second}))
    encoder, projector = load_pretrained(save(tmp_path/'vissl.torch', dict(classy_state_dict=dict(base_model=dict(model=state)))))
    representation = torch.randn(3, 8)
    with torch.no_grad(): assert_close(projector(representation), F.normalize(second(F.relu(first(representation)))))
    assert encoder.report.layout == 'VISSL'

@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'wide_resnet50_2', 'resnext50_32x4d'])
def test_whole_resnets_of_torchvision(name, tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    encoder, _ = load_pretrained(save(tmp_path/'whole.pth', model.state_dict()))
    model.fc, images = nn.Identity(), torch.rand(1, 3, 64, 64)
    with torch.no_grad(): assert_close(encoder(images), model((images - IMAGENET[0])/IMAGENET[1]), atol=1e-4, rtol=1e-4)

# ---- nothing is run

ATTACK = '''
import os, pickle, subprocess, torch
class Run:
    def __init__(self, call): self.call = call
    def __reduce__(self): return self.call
calls = [(os.system, ('touch ran',)), (subprocess.check_output, (['touch', 'ran'],)), (eval, ("open('ran', 'w')",)), (exec, ("open('ran', 'w')",)),
         (open, ('ran', 'w')), (os.mkdir, ('ran',))]
for i, call in enumerate(calls):
    for old in (False, True): torch.save(dict(state_dict={'w': torch.ones(2)}, args=Run(call)), f'{i}{old}.pt', _use_new_zipfile_serialization=not old)
    with open(f'{i}.pt', 'wb') as file: pickle.dump(dict(args=Run(call)), file, protocol=2)
    with open(f'{i}.safetensors', 'wb') as file: pickle.dump(dict(args=Run(call)), file, protocol=2)
'''

def test_attacks_do_not_run(tmp_path, monkeypatch):
    subprocess.run([sys.executable, '-c', ATTACK], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    files = sorted(path for path in tmp_path.iterdir() if path.suffix in ('.pt', '.safetensors'))
    assert len(files) == 24
    for path in files:
        with pytest.raises(CheckpointError) as caught: load_pretrained(path)
        assert '\n' not in str(caught.value)
        if path.suffix == '.pt' and path.stem[-1] == 'e': assert 'do not use this file' in str(caught.value)       # both formats of torch.save
    assert not (tmp_path/'ran').exists()

def test_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path/'letters.pt', 'w') as archive: archive.writestr('a.txt', 'hello')
    (tmp_path/'empty.pt').write_bytes(b'')
    (tmp_path/'page.pth').write_bytes(b'<html>404 Not Found</html>')
    (tmp_path/'page.safetensors').write_bytes(b'<html>404 Not Found</html>')
    (tmp_path/'half.safetensors').write_bytes((2**40).to_bytes(8, 'little'))
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path/'script.pt')
    save(tmp_path/'tensor.pt', torch.ones(3))
    save(tmp_path/'protocol.pt', dict(state_dict=dict(w=torch.ones(1)), x=(1, 'a', {3})), pickle_protocol=4)
    (tmp_path/'folder.pt').mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError) as caught: load_pretrained(path)
        assert '\n' not in str(caught.value) and path.name in str(caught.value), path

# ---- whatever is in it: a network that is right, or a CheckpointError

def checkpoints(): # small, of many layouts, with the representation that each should give
    net, head = small_resnet(), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    other = small_resnet(1)
    yield keyed(**{'module.encoder_q': net, 'module.encoder_q.fc': head, 'module.encoder_k': other}) | {'module.queue': torch.rand(4, 6)}
    yield dict(state_dict=keyed(encoder=net, projector=head, _encoder=other, _projector=head))
    yield dict(state_dict=keyed(backbone=nn.Sequential(*list(net.children())[:-1])) | keyed(**{'projection_head.layers': head}))
    yield dict(model=keyed(**{'module.backbone': net, 'module.projector': head, 'module.bn': nn.BatchNorm1d(4, affine=False)}))
    yield dict(teacher=keyed(backbone=net, **{'head.mlp': head}), student=keyed(**{'module.backbone': other}))
    yield net.state_dict()

def tables(checkpoint): # the innermost dictionaries
    inner = [value for value in checkpoint.values() if isinstance(value, dict)]
    return [table for value in inner for table in tables(value)] or [checkpoint]

def spoil(checkpoint, draw): # a copy with names lost, renamed or doubled, and tensors of other shapes, types and values
    spoilt = copy.deepcopy(checkpoint)
    for table in tables(spoilt):
        for key in list(table):
            if draw.random() > .02: continue
            tensor = table[key]
            change = draw.randrange(9)
            if change == 0: del table[key]
            elif change == 1: table[key[:-1]] = table.pop(key)
            elif change == 2: table[key] = tensor.flatten()
            elif change == 3: table[key] = tensor[:1] if tensor.ndim else tensor
            elif change == 4: table[key] = tensor.unsqueeze(0)
            elif change == 5: table[key] = torch.zeros(0)
            elif change == 6: table[key] = tensor.long()
            elif change == 7: table[key] = draw.choice([None, 'text', 3, [tensor], dict(a=tensor), torch.zeros(()), torch.rand(1, 2, 3, 4, 5)])
            else: table[f'{key.rsplit(".", 1)[0]}.{draw.randrange(3)}.weight'] = tensor
    return spoilt

@pytest.mark.parametrize('number', range(6))
def test_spoilt_checkpoints(number, tmp_path):
    checkpoint, images = list(checkpoints())[number], torch.rand(2, 3, 64, 64)
    right, read, refused = load_pretrained(save(tmp_path/'whole.pt', checkpoint)), 0, 0
    with torch.no_grad(): want = right[0](images)
    for seed in range(25):
        spoilt = spoil(checkpoint, random.Random(seed))
        path = save(tmp_path/'spoilt.pt', spoilt)
        try: encoder, projector = load_pretrained(path)
        except CheckpointError as error:
            refused += 1
            assert '\n' not in str(error)
            continue
        read += 1
        with torch.no_grad(): got = encoder(images)
        if _same(spoilt, checkpoint): assert_close(got, want)
        assert torch.isfinite(projector(got)).all()
    assert read + refused == 25 and refused > 5

def _same(spoilt, checkpoint): # are the encoder's tensors untouched?
    equal = lambda a, b: isinstance(a, torch.Tensor) and torch.equal(a, b)
    return all(a.keys() == b.keys() and all(equal(a[key], b[key]) for key in b) for a, b in zip(tables(spoilt), tables(checkpoint)))

def test_random_key_subsets(tmp_path):
    draw = random.Random(0)
    for checkpoint in checkpoints():
        for share in (.02, .3, .9):
            part = copy.deepcopy(checkpoint)
            for table in tables(part):
                for key in [key for key in table if draw.random() > share]: del table[key]
            with pytest.raises(CheckpointError): load_pretrained(save(tmp_path/'part.pt', part))

def test_bytes_changed(tmp_path):
    path = save(tmp_path/'whole.pt', list(checkpoints())[1])
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(40):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 20))): changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed[:draw.choice((len(changed), draw.randrange(len(changed))))])
        try: load_pretrained(path)
        except CheckpointError as error: assert '\n' not in str(error)

# ---- what is said

def test_the_line_on_stderr(tmp_path, monkeypatch, capsys):
    path = save(tmp_path/'moco.pth', list(checkpoints())[0])
    load_pretrained(path)
    assert capsys.readouterr().err == ''
    monkeypatch.delenv('OACL_QUIET')
    encoder, _ = load_pretrained(path)
    said = capsys.readouterr()
    assert said.out == '' and said.err == encoder.report.summary + '\n' and 'MoCo' in said.err and '8-8-4' in said.err
    load_pretrained('scenes')
    assert capsys.readouterr().err == ''

def test_layout_by_name(tmp_path):
    path = save(tmp_path/'vicreg.pth', list(checkpoints())[3])
    assert inspect_checkpoint(path).layout == 'Barlow Twins' and inspect_checkpoint(path, layout='VICReg').layout == 'VICReg'
    assert read_networks(path, layout='plain')[1] == []
    with pytest.raises(InputError, match='unknown layout'): inspect_checkpoint(path, layout='vicrag')
    assert len({row.name for row in LAYOUTS}) == len(LAYOUTS)

# ---- what training scripts leave beside the weights

BESIDE = '''
import argparse, collections, dataclasses, datetime, enum, functools, pathlib, re, types
import numpy as np, torch
from torch import nn
class Mode(enum.Enum): A = 1
class Settings(dict): pass
class Names(list): pass
@dataclasses.dataclass
class Config:
    lr:float = .1
settings = Settings(lr=.1); settings.frozen = True
things = [argparse.Namespace(lr=.1), Mode.A, {Mode.A: 1}, Config(), Config, {Config: 1}, settings, Names([1, 2]), functools.partial(int, base=2), pathlib.Path('a'),
          collections.defaultdict(list, a=[1]), collections.deque([1]), np.arange(3), np.array([{}, 'a'], dtype=object), np.float64(1), np.dtype('float32'),
          datetime.datetime.now(), re.compile('a'), types.SimpleNamespace(a=1), np.mean, 1j, b'abc', frozenset([1]), slice(1, 2), ..., ValueError('a'),
          torch.optim.SGD([nn.Parameter(torch.ones(1))], .1), Settings(transform=nn.Sequential(nn.Linear(2, 2)))]
weights = dict(w=torch.ones(2))
for i, thing in enumerate(things):
    torch.save(dict(hyper_parameters=thing, state_dict=weights), f'{i}.new')
    if i < len(things) - 1: torch.save(dict(hyper_parameters=thing, state_dict=weights), f'{i}.old', _use_new_zipfile_serialization=False)
'''

def test_what_lies_beside_the_weights(tmp_path):
    (tmp_path/'script.py').write_text(BESIDE)
    subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, check=True)
    files = [path for path in tmp_path.iterdir() if path.suffix in ('.new', '.old')]
    assert len(files) == 55
    for path in files: assert_close(load_checkpoint(path)['state_dict'], dict(w=torch.ones(2)))

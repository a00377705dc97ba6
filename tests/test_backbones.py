"Encoders around networks that are wrapped for several processes, and what importing costs."
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor

import torch
import torchvision
from torch import distributed, nn
from torch.testing import assert_close

from oacl.backbones import as_encoder, unwrap
from oacl.contracam import contracam
from oacl.encoders import projector


def test_distributed_network_gives_the_maps_of_the_plain_one(tmp_path):
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = torchvision.models.resnet18().eval()
        head = projector(512, 32, 16).eval()
        images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        plain = contracam(as_encoder(model), head, images, iters=2, upscale=2)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for network in (wrapped, torch.compile(wrapped, backend='eager'), nn.parallel.DistributedDataParallel(torch.compile(model, backend='eager'))):
            assert unwrap(network) is model
            assert_close(contracam(as_encoder(network), head, images, iters=2, upscale=2), plain)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    finally: distributed.destroy_process_group()


def test_importing_does_not_import_other_libraries():
    code = "import sys, oacl.backbones; print([name for name in ('timm', 'transformers', 'huggingface_hub') if name in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_threads_that_share_a_network_do_not_mix_their_layers():
    torch.manual_seed(0)
    encoder = as_encoder(torchvision.models.resnet18().eval(), layer='layer2')
    pictures = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(16)]
    with torch.no_grad(): alone = [encoder.features(picture) for picture in pictures]

    def features(picture):
        with torch.no_grad(): return encoder.features(picture)

    with ThreadPoolExecutor(4) as pool: together = list(pool.map(features, pictures))
    for a, b in zip(alone, together): assert_close(a, b)

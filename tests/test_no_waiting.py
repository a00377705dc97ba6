"A whole training step on tensors without values: whatever would make Python wait for a GPU cannot run there."
from contextlib import nullcontext

import pytest, torch

from oacl.augment import BackgroundQueue
from oacl.geometry import no_waiting
from oacl.methods import make_method
from oacl.views import MIXINGS, TwoViews

@pytest.mark.parametrize('name', ['simclr', 'moco', 'byol'])
@pytest.mark.parametrize('mixing', MIXINGS)
def test_a_step_never_waits(name, mixing, monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())             # which knows no device of this kind
    method, _ = make_method(name, dict(arch='resnet8', widths=[8, 16, 16]), dict(hidden=16, out=8), **(dict(queue_size=12) if name == 'moco' else {}))
    method.to('meta').train()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=.1, momentum=.9)
    images, cams, views, queue = torch.rand(8, 3, 40, 40, device='meta'), torch.rand(8, 1, 40, 40, device='meta'), TwoViews(32, mixing=mixing), BackgroundQueue(5)
    with no_waiting():
        for _ in range(2):
            found = views(images, cams=cams, queue=queue)
            loss, pooled = method(*found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()
    assert loss.device.type == 'meta' and pooled.shape[0] == 8 and not pooled.requires_grad

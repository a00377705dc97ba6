"The background-only picture beside the published code's, whose rectangles end one row and one column too early."
import numpy as np, pytest, torch
from torch.testing import assert_close

from oacl.augment import background_only

@pytest.fixture(scope='module')
def published(shared):
    path = shared/'goldens'/'bg_mixup.npz'
    if not path.exists(): pytest.skip('needs ../shared/goldens/bg_mixup.npz, which is not here')
    return np.load(path)

@pytest.fixture(scope='module')
def images(published): return torch.tensor(published['images']).permute(0, 3, 1, 2)/255

@pytest.fixture(scope='module')
def pictures(published, images): # ours, and whether there are any
    return background_only(images, torch.tensor(published['masks'])[:, None], .2)

def rectangles(published): # first and last row, first and last column, strip (above, left, right, below), per picture
    return [(*rectangle, strip) for rectangle, strip in zip(published['rect_hard'].tolist(), published['strip_index'].tolist())]

def test_the_same_pictures_have_a_background(published, pictures):
    assert pictures[1].tolist() == published['bg_exists'].tolist()

def test_soft_and_hard_masks_hide_the_same(published, images, pictures):
    hard = torch.tensor(published['hard_masks']).bool()[:, None]
    assert_close(background_only(images, hard)[0], pictures[0], atol=0, rtol=0)

def test_equal_where_the_published_code_is_right(published, pictures):
    "Outside the rectangle always; inside it but for the last row and column, where the strip lies above or left (the others begin inside the rectangle there)."
    compared = 0
    for ours, theirs, (top, bottom, left, right, strip) in zip(pictures[0], torch.tensor(published['bg_only']), rectangles(published)):
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[top:bottom + 1, left:right + 1] = False
        assert_close(ours[:, outside], theirs[:, outside], atol=1e-6, rtol=0)
        if strip in (0, 1):
            compared += 1
            assert_close(ours[:, top:bottom, left:right], theirs[:, top:bottom, left:right], atol=1e-6, rtol=0)
    assert compared >= 3

def test_where_it_leaves_the_object_ours_does_not(published, images, pictures):
    "The last row and column of the rectangle keep the object there; here no pixel of the object keeps its colour, but by chance."
    for image, ours, theirs, hard, (top, bottom, left, right, strip), (left_over, total) in zip(
            images, pictures[0], torch.tensor(published['bg_only']), torch.tensor(published['hard_masks']).bool(), rectangles(published),
            published['fg_pixels_left_unchanged_of_total'].tolist()):
        assert_close(theirs[:, bottom, left:right + 1], image[:, bottom, left:right + 1], atol=1e-6, rtol=0)
        assert_close(theirs[:, top:bottom + 1, right], image[:, top:bottom + 1, right], atol=1e-6, rtol=0)
        kept = lambda picture: int(((picture - image).abs().amax(0) < 1e-6)[hard].sum())
        assert kept(theirs) == left_over and hard.sum() == total and left_over > .03*total
        assert kept(ours) < .005*total

def test_strips_on_the_right_begin_behind_the_object(published, images, pictures):
    "The published strip on the right begins with the object's last column, so its tiles repeat that column all over the rectangle; ours begins one later."
    seen = 0
    for image, ours, theirs, (top, bottom, left, right, strip) in zip(images, pictures[0], torch.tensor(published['bg_only']), rectangles(published)):
        if strip != 2: continue
        seen += 1
        inside, width = slice(top, bottom), 64 - (right + 1)
        column = next(x for x in range(left, right) if x % width == 0)                     # where a tile begins
        assert_close(ours[:, inside, column], image[:, inside, right + 1], atol=1e-6, rtol=0)
        column = next(x for x in range(left, right) if x % (width + 1) == 0)
        assert_close(theirs[:, inside, column], image[:, inside, right], atol=1e-6, rtol=0)
    assert seen

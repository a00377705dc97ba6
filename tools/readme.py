"""README.md from nbs/index.ipynb, with the outputs that the notebook holds; --check compares instead of writing.

Nothing is run here, so the same notebook always gives the same bytes."""
import posixpath, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
HEADER = '<!-- Written by `make readme` from nbs/index.ipynb: edit the notebook, not this file. -->\n\n'
FIGURES = 'nbs/images/index'  # pictures among the notebook's outputs become nbs/images/index-1.png, …
DIRECTIVE = re.compile(r'^#\s*\|.*\n?', re.M)
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)\s"#]+)')

def from_root(
    match, # a link in the notebook, relative to nbs/
) -> str: # the same link relative to the root, where README.md lies; links to no file of ours stay
    target = posixpath.normpath('nbs/' + match[2])
    return match[1] + (target if (ROOT/target).exists() else match[2])

def shown(
    nb, # the notebook as read
): # the notebook as the README shows it: no hidden cell, no directive line, links from the root
    nb.cells = [cell for cell in nb.cells if not re.search(r'^#\s*\|\s*hide\b', cell.source, re.M)]
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = LINK.sub(from_root, cell.source)
        if cell.cell_type == 'code':
            if re.search(r'^#\s*\|\s*echo:\s*false', cell.source, re.M): cell.metadata['tags'] = ['echo-false']  # only what it shows
            cell.source = DIRECTIVE.sub('', cell.source).strip()
    nb.metadata['language_info'] = {'name': 'python'}
    return nb

def render() -> dict: # every generated file, as path from the root -> bytes
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    described = [text for cell in nb.cells for text in re.findall(r'^#\s*\|\s*fig-alt:\s*(.+)$', cell.source, re.M)]
    nb = shown(nb)
    silent = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'echo-false'}))
    text, resources = MarkdownExporter(config=silent).from_notebook_node(nb)
    files = {}
    for number, (name, picture) in enumerate(resources.get('outputs', {}).items(), 1):
        path = f'{FIGURES}-{number}{Path(name).suffix}'
        files[path] = picture
        alt = described[number - 1] if number <= len(described) else f'figure {number}'
        text = re.sub(rf'!\[[^\]]*\]\({re.escape(name)}\)', f'![{alt}]({path})', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return {'README.md': (HEADER + text).encode(), **files}

def stale(
    files, # what `render` returned
) -> list: # paths that are absent, different, or figures of an output that is gone
    differ = [path for path, content in files.items() if not (ROOT/path).is_file() or (ROOT/path).read_bytes() != content]
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(f'{FIGURES}-*')]
    return differ + [path for path in found if path not in files]

def write(files):
    for path in stale(files):
        if path not in files: (ROOT/path).unlink(); continue
        (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/path).write_bytes(files[path])

if __name__ == '__main__':
    files = render()
    if sys.argv[1:] == ['--check']:
        behind = stale(files)
        if behind: sys.exit(f"not what nbs/index.ipynb gives: {', '.join(behind)}; run: make readme")
    else: write(files)

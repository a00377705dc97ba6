"""The notebooks as static pages in _docs, for a machine without Quarto: same folders, links between pages, a list of all pages."""
import re, shutil
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS = ROOT/'nbs', ROOT/'_docs'

def is_shown(path): return not any(part[0] in '._' for part in path.relative_to(NBS).parts)

def page(
    path, # a notebook
    exporter, # an HTMLExporter
) -> str: # its page: no hidden cell, links to notebooks become links to pages
    nb = nbformat.read(path, as_version=4)
    nb.cells = [cell for cell in nb.cells if not re.search(r'^#\s*\|\s*hide\b', cell.source, re.M)]
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = re.sub(r'\]\((?!\w+:)([^)\s]+)\.ipynb', r'](\1.html', cell.source)
    html, _ = exporter.from_notebook_node(nb, resources=dict(metadata=dict(name=path.stem)))
    return html

def contents(
    paths, # of all notebooks
) -> str: # a list of their pages, to stand at the end of the first page
    items = ''.join(f'<li><a href="{path.relative_to(NBS).with_suffix(".html").as_posix()}">'
                    f'{path.relative_to(NBS).with_suffix("").as_posix()}</a></li>' for path in paths)
    return f'<main style="padding:0 4em 2em"><h2>All pages</h2><ul>{items}</ul></main>'

def main():
    shutil.rmtree(DOCS, ignore_errors=True)
    paths = sorted((path for path in NBS.rglob('*.ipynb') if is_shown(path)), key=lambda path: path.name)
    exporter = HTMLExporter()
    for path in paths:
        html = page(path, exporter)
        if path == NBS/'index.ipynb': html = html.replace('</body>', contents(paths) + '</body>')
        out = DOCS/path.relative_to(NBS).with_suffix('.html')
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding='utf-8')
    if (NBS/'images').is_dir(): shutil.copytree(NBS/'images', DOCS/'images')
    print(f'{len(paths)} pages: open _docs/index.html')

if __name__ == '__main__': main()

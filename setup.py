"Packaging: everything that has a value is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser()
parser.read(here/'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']

def lines(key): return [line.strip() for line in settings.get(key, '').splitlines() if line.strip()]

name = settings['lib_name']
setup(
    name=name,
    version=settings['version'],
    description=settings['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    author_email=settings['author_email'],
    url=settings['git_url'],
    license='Apache-2.0',
    keywords=settings['keywords'].split(),
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[name, f'{name}.*']),
    package_data={name: settings.get('package_data', '').split()},
    include_package_data=False,
    install_requires=settings['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): settings[key].split() for key in settings if key.endswith('_requirements')},
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=[f'{name}={name}._modidx:d']),
    zip_safe=False,
)

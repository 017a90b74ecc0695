"""python -m neuroada_cli, for launchers such as accelerate's."""

from neuroada_cli.main import app

app(prog_name="neuroada")

"""torchx components: how each program is launched. An installed wheel holds them as ``nasrec_torchrec.components``."""

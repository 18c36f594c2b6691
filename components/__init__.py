"""torchx components: how each program under apps/ is launched."""

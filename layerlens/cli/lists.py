"""`layerlens models`, `datasets` and `doctor`: what there is."""

import typer


def models() -> None:
    """List the model families whose structure is known and tested."""
    from layerlens.models.families import FAMILIES

    typer.echo("Model types in the families table; any other decoder-only type is tried and checked at load.\n")
    for name, family in FAMILIES.items():
        blocks = "parallel blocks" if family.parallel is True else "sequential blocks"
        if isinstance(family.parallel, str):
            blocks = f"parallel blocks if config.{family.parallel}"
        typer.echo(f"  {name:<18} {blocks}")


def datasets() -> None:
    """List the datasets that --dataset knows."""
    from layerlens.datasets import names

    for card in names():
        typer.echo(f"  {card.name:<8} {card.hub_id or 'shipped with layerlens'}{' (gated)' if card.gated else ''}")
        scored = f"scored by {card.scoring}" if card.scoring else "not scored"
        typer.echo(f"           {card.description} ({card.licence}); {scored}")


def doctor() -> None:
    """Show versions and hardware: what a report of a problem should include."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    typer.echo(f"python         {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("layerlens", "torch", "transformers", "gguf", "pandas", "pyarrow", "matplotlib"):
        try:
            typer.echo(f"{name:<14} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name:<14} not installed")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(f"gpu            {gpu}\nthreads        {torch.get_num_threads()}")

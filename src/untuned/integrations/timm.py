"""timm: `register()` lets `timm.optim.create_optimizer_v2` build every method."""

# pyright: reportMissingImports=false
# timm is an extra.

from __future__ import annotations

import inspect

from timm.optim import OptimInfo, list_optimizers
from timm.optim._optim_factory import default_registry

from untuned import registry


def register() -> list[str]:
    """Make every method known to timm, as often as you like; returns the names: "untuned-prodigy", ...

    timm cuts a name at underscores and looks up the last piece, so they are hyphens here: "untuned-momo-adam" is the
    method, "untuned_momo_adam" timm's own Adam.
    """
    names = {f"untuned-{name.replace('_', '-')}": registry.get(name) for name in registry.names()}
    for name in names.keys() - set(list_optimizers()):
        method = names[name]
        options = inspect.signature(method.optimizer).parameters
        info = OptimInfo(
            name=name,
            opt_class=method.optimizer,
            description=method.summary,
            has_eps="eps" in options,
            has_momentum="momentum" in options,
            has_betas="betas" in options,
            num_betas=len(options["betas"].default) if "betas" in options else 2,
        )
        default_registry.register(info)
    return list(names)

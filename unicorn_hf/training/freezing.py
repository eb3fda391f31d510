"""Freeze the parts of a model that a stage does not train."""


def freeze_all_but_projector(model) -> None:
    """Stage 1: train only the projector. In place."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)


def freeze_vision_tower(model) -> None:
    """Stages 2 and 3: everything is trained but the vision tower, whose vectors the data already hold. In place."""
    model.requires_grad_(True)
    if getattr(model.model, "vision_tower", None) is not None:
        model.model.vision_tower.requires_grad_(False)

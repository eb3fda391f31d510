"""The torch device of a name."""

from unicorn_hf.errors import InputError


def find_device(name=None):
    """The device of that name; a GPU by default, where there is one.

    Raises:
        InputError: there is no such device, or none that tensors can be put on and read from.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()  # meta has nothing to copy
    except Exception as error:  # each kind of device refuses in its own words, and with a type of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"The device {str(name)[:100]!r} cannot be used here ({reason}); expected cpu, or a GPU's, as cuda:0"
        ) from error
    return device

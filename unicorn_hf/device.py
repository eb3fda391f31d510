"""Find a torch device by name."""

from unicorn_hf.errors import InputError


def find_device(name=None):
    """The device of that name; by default a GPU if there is one.

    Raises:
        InputError: the device does not exist, or tensors cannot be copied to it and back.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()  # fails for `meta`, which holds no data
    except Exception as error:  # each kind of device raises its own type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"The device {str(name)[:100]!r} cannot be used here ({reason}); expected cpu, or a GPU such as cuda:0"
        ) from error
    return device

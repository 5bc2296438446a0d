"""What every push to the Hub heeds, by a trainer or by `flm push`: pickled files stay, and a failure has a reason."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def reason(error: BaseException) -> str:
    """Why a push failed, in one line: of an upload huggingface_hub says so only in the cause of its error."""
    cause = error.__cause__ if type(error) is RuntimeError else None
    return " ".join((f"{error} {type(cause).__name__}: {cause}" if cause else f"{error}").split()).rstrip(".")

"""What pushes of a trainer and of `flm push` have in common: which files are pickled, and never pushed; and the reason
of a failure."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def reason(error: BaseException) -> str:
    """Why a push failed, in one line. For an upload, huggingface_hub tells this only in the cause of its error."""
    cause = error.__cause__ if type(error) is RuntimeError else None
    return " ".join((f"{error} {type(cause).__name__}: {cause}" if cause else f"{error}").split()).rstrip(".")

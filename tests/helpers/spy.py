"""Watching calls."""


def spy(monkeypatch, owner, name: str) -> list[tuple]:
    """The arguments of every call of `owner.name`, which goes on working."""
    calls, method = [], getattr(owner, name)

    def watched(*args, **kwargs):
        calls.append(args)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    return calls

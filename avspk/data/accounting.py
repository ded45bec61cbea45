"""Names the files of a clip that were not needed, so that every file of a tree is accounted for."""

from collections.abc import Iterable, Iterator

from avspk.data.clips import Clip
from avspk.data.tree import Rejected


def unused_files(clips: Iterable[Clip], utterances: set[str], rejected: Iterable[Rejected]) -> Iterator[Rejected]:
    """Files of clips that are neither in an utterance nor rejected yet, with the reason.

    `utterances` are the ids made from the clips, `rejected` is what preparation left out.
    """
    reasons = {one.path: one.reason for one in rejected}
    used = utterances | {name.rstrip("0123456789") for name in utterances}
    for clip in clips:
        left = [path for path in clip.sounds if path not in reasons]
        if clip.utterance in utterances or clip.stem in used:
            sounds = [path for path in left if path != clip.video]
            yield from (Rejected(path, f"not needed: {sounds[0]} is this clip's sound") for path in sounds[1:])
        else:
            cause = next((f": {path}, {reasons[path]}" for path in clip.sounds if path in reasons), "")
            yield from (Rejected(path, f"its clip was left out{cause}") for path in left)

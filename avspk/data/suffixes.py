"""File-name suffixes of sound and video; the decoders then check the content."""

from avspk.data.video import VIDEO_SUFFIXES

# In order of preference: formats that can be used without conversion come first.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".sph", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".wave", ".voc"),
    *(".m4a", ".m4b", ".aac", ".opus", ".ogg", ".oga", ".spx", ".mp3", ".mp2", ".mpa", ".wma", ".amr", ".awb"),
    *(".ac3", ".eac3", ".dts", ".mka", ".ape", ".wv", ".tta", ".tak", ".mpc", ".gsm", ".ra"),
)
MEDIA_SUFFIXES = frozenset((*AUDIO_SUFFIXES, *VIDEO_SUFFIXES))

"""The modalities, such as audio and face. One file contains everything about one of them."""

"""The kinds of media that a speaker is heard or seen by. One file tells all about one of them."""

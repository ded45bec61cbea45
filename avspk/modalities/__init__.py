"""The modalities. One file each: its settings, and how its views, front end and encoder fit together."""

"""What a frozen vision tower says of the training pictures, computed once and kept on disk.

`cache` is the way in. A store (`store`) holds one row for every picture: its views, encoded
(`layout`), and a stamp that says of which version of the picture they are. Which tower, processor
and options a store belongs to is in its folder's name and its ``header.json`` (`identity`). `fill`
computes what a `plan` finds missing, `splits` lets a dataset read the rows in the place of its
pictures.

Stores lie in ``<cache>/features``, one folder each; they may be deleted whenever nothing runs.
"""

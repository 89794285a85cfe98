"""Getting the data sets: ``lavislite download NAME``.

What a data set consists of is described in ``lavislite/configs/downloads/<name>.yaml``.
"""

from lavislite.download.command import download as download
from lavislite.download.description import describe as describe
from lavislite.download.description import names as names

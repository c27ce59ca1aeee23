# Arrow puts its functions into this module when it is imported, where pyright cannot see them.
from typing import Any

def __getattr__(name: str) -> Any: ...

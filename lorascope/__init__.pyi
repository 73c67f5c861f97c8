from lorascope.adapt.inject import Injected as Injected
from lorascope.analyses.base import Result as Result
from lorascope.api import activations as activations
from lorascope.api import adapters as adapters
from lorascope.api import analyze as analyze
from lorascope.api import compare as compare
from lorascope.api import delta as delta
from lorascope.api import dimension as dimension
from lorascope.api import inject as inject
from lorascope.api import intruders as intruders
from lorascope.api import load as load
from lorascope.api import merge as merge
from lorascope.api import open_model as open_model
from lorascope.api import read as read
from lorascope.api import resize as resize
from lorascope.api import save as save
from lorascope.api import trajectory as trajectory
from lorascope.errors import InputError as InputError
from lorascope.errors import LorascopeError as LorascopeError
from lorascope.weights.adapter import Adapter as Adapter

__version__: str
__all__: list[str]

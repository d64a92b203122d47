"""What models, data sets and the driver share. Importing it prepares the process for `import jittor`."""
from util import runtime

runtime.prepare()

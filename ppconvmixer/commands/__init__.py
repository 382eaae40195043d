"""The commands of ``ppconvmixer``, a file each: its arguments and what it does with them."""

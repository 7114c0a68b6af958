"""`openmoe convert`: the plan, its journal, and how it is carried out."""

"""What the service says in a fixed form, and the fronts translate: classes, problems, states."""

PHRASES = (
    "oil", "emulsion", "oil platform", "sheen", "ship", "background", "thick and dark, brown to black", "oil churned with water: orange-brown, ropy",
    "a rig or platform", "a film: silvery, rainbow or dull metallic", "a vessel", "sea, coast or sky: none of the others",
    "Image too large", "Not an image", "Image cannot be read", "Form cannot be read", "Images cannot be used", "Disk full", "Body did not arrive",
    "Overloaded", "Not ready", "Not allowed", "Scope missing", "Too many requests", "No such model",
    "Model cannot be served", "Not a valid request", "No such job", "Not in this state",
    "No queue", "No job store", "passed", "failed", "not certified", "the model knows no thresholds", "the bundle has no thresholds",
    "the job was cancelled", "send them again", "the model is being loaded", "ask again in a few seconds", "send it smaller",
)

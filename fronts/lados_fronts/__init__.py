"""What both front ends share: the service through `lados.client`, texts in two languages, what a visitor keeps, and exports."""

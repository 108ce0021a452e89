package blobs

// OpenS3Impatient is OpenS3 with another limit for connections that stand still.
var OpenS3Impatient = openS3

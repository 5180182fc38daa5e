module nats-go-clients

// Debian 12 has this one.
go 1.19

require (
	github.com/nats-io/nats.go v1.31.0
	github.com/nats-io/nkeys v0.4.6
)

require (
	github.com/klauspost/compress v1.17.0 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	golang.org/x/crypto v0.14.0 // indirect
	golang.org/x/sys v0.13.0 // indirect
)

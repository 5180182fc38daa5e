// Unmodified nats.go: `nats-go-clients SCENARIO JSON`. Exit status 0 means the scenario saw what it expects.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

const deadline = 10 * time.Second

type given struct {
	URL, Subject, User, Password, Token, Seed, Creds, Denied, Bucket string
	MaxPayload                                                       int
	Words                                                            nats.Header
	TLS                                                              struct {
		CAFile, CertFile, KeyFile string
		First                     bool
	}
}

func (g given) options() []nats.Option {
	options := []nats.Option{nats.NoReconnect(), nats.Timeout(deadline)}
	if g.TLS.CAFile != "" {
		options = append(options, nats.RootCAs(g.TLS.CAFile))
	}
	if g.TLS.CertFile != "" {
		options = append(options, nats.ClientCert(g.TLS.CertFile, g.TLS.KeyFile))
	}
	if g.TLS.First {
		options = append(options, nats.TLSHandshakeFirst())
	}
	switch {
	case g.User != "":
		return append(options, nats.UserInfo(g.User, g.Password))
	case g.Token != "":
		return append(options, nats.Token(g.Token))
	case g.Creds != "":
		return append(options, nats.UserCredentials(g.Creds))
	case g.Seed != "":
		pair, err := nkeys.FromSeed([]byte(g.Seed))
		check(err)
		public, err := pair.PublicKey()
		check(err)
		return append(options, nats.Nkey(public, pair.Sign))
	}
	return options
}

func (g given) connect(more ...nats.Option) *nats.Conn {
	nc, err := nats.Connect(g.URL, append(g.options(), more...)...)
	check(err)
	return nc
}

var scenarios = map[string]func(given){
	"messages": func(g given) {
		sender, receiver := g.connect(), g.connect()
		sub, err := receiver.SubscribeSync(g.Subject + ".>")
		check(err)
		check(receiver.Flush())
		for i := 0; i < 1000; i++ {
			check(sender.Publish(fmt.Sprintf("%s.%d", g.Subject, i%7), []byte(fmt.Sprint(i))))
		}
		for i := 0; i < 1000; i++ {
			message := next(sub)
			expect(string(message.Data), fmt.Sprint(i))
			expect(message.Subject, fmt.Sprintf("%s.%d", g.Subject, i%7))
		}
	},
	"queue_groups": func(g given) {
		nc := g.connect()
		var taken int64
		done := make(chan struct{}, 300)
		for i := 0; i < 3; i++ {
			member := g.connect()
			_, err := member.QueueSubscribe(g.Subject, "workers", func(*nats.Msg) {
				atomic.AddInt64(&taken, 1)
				done <- struct{}{}
			})
			check(err)
			check(member.Flush())
		}
		for i := 0; i < 300; i++ {
			check(nc.Publish(g.Subject, nil))
		}
		for i := 0; i < 300; i++ {
			select {
			case <-done:
			case <-time.After(deadline):
				fail("%d of 300 messages", atomic.LoadInt64(&taken))
			}
		}
		check(nc.Flush())
		expect(fmt.Sprint(atomic.LoadInt64(&taken)), "300")
	},
	"requests": func(g given) {
		service, client := g.connect(), g.connect()
		_, err := service.Subscribe(g.Subject, func(m *nats.Msg) { check(m.Respond([]byte(strings.ToUpper(string(m.Data))))) })
		check(err)
		check(service.Flush())
		for i := 0; i < 100; i++ {
			answer, err := client.Request(g.Subject, []byte(fmt.Sprintf("question %d", i)), deadline)
			check(err)
			expect(string(answer.Data), fmt.Sprintf("QUESTION %d", i))
		}
	},
	"no_responders": func(g given) {
		_, err := g.connect().Request(g.Subject, nil, deadline)
		if !errors.Is(err, nats.ErrNoResponders) {
			fail("%v", err)
		}
	},
	"headers": func(g given) {
		nc := g.connect()
		sub, err := nc.SubscribeSync(g.Subject)
		check(err)
		message := nats.NewMsg(g.Subject)
		message.Header["X-Two"] = []string{"one", "two: with a colon"}
		message.Header.Set("lower", "")
		message.Data = []byte("payload")
		check(nc.PublishMsg(message))
		got := next(sub)
		expect(fmt.Sprint(got.Header), fmt.Sprint(message.Header))
		expect(string(got.Data), "payload")
	},
	"words": func(g given) {
		nc := g.connect()
		sub, err := nc.SubscribeSync(g.Subject + ".in")
		check(err)
		check(nc.Flush())
		fmt.Println(`{"event": "ready"}`)
		for i := 0; i < 2; i++ {
			got := next(sub)
			expect(fmt.Sprint(got.Header), fmt.Sprint(g.Words))
			expect(string(got.Data), "words")
			back := nats.NewMsg(g.Subject + ".out")
			back.Header = g.Words
			check(nc.PublishMsg(back))
		}
		check(nc.Flush())
	},
	"drain": func(g given) {
		closed := make(chan struct{})
		nc := g.connect(nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		var taken int64
		_, err := nc.Subscribe(g.Subject, func(*nats.Msg) { atomic.AddInt64(&taken, 1) })
		check(err)
		for i := 0; i < 200; i++ {
			check(nc.Publish(g.Subject, nil))
		}
		check(nc.Flush())
		check(nc.Drain())
		select {
		case <-closed:
		case <-time.After(deadline):
			fail("not drained")
		}
		expect(fmt.Sprint(atomic.LoadInt64(&taken)), "200")
	},
	"unsubscribe_max": func(g given) {
		nc := g.connect()
		sub, err := nc.SubscribeSync(g.Subject)
		check(err)
		check(sub.AutoUnsubscribe(2))
		for i := 0; i < 5; i++ {
			check(nc.Publish(g.Subject, []byte(fmt.Sprint(i))))
		}
		check(nc.Flush())
		expect(string(next(sub).Data), "0")
		expect(string(next(sub).Data), "1")
		if _, err := sub.NextMsg(deadline); !errors.Is(err, nats.ErrMaxMessages) {
			fail("%v", err)
		}
	},
	"largest_payload": func(g given) {
		nc := g.connect()
		expect(fmt.Sprint(nc.MaxPayload()), fmt.Sprint(g.MaxPayload))
		sub, err := nc.SubscribeSync(g.Subject)
		check(err)
		check(nc.Publish(g.Subject, []byte(strings.Repeat("x", g.MaxPayload))))
		expect(fmt.Sprint(len(next(sub).Data)), fmt.Sprint(g.MaxPayload))
	},
	"login": login,
	"bad_login": func(g given) {
		_, err := nats.Connect(g.URL, g.options()...)
		if !errors.Is(err, nats.ErrAuthorization) {
			fail("%v", err)
		}
	},
	"denied_subscribe": func(g given) {
		failed := make(chan error, 10)
		nc := g.connect(nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { failed <- err }))
		denied := g.Denied + "." + g.Subject
		_, err := nc.QueueSubscribeSync(denied, "q")
		check(err)
		select {
		case err := <-failed:
			said := strings.ToLower(err.Error())
			if !strings.Contains(said, "permissions violation for subscription to \""+strings.ToLower(denied)+"\" using queue \"q\"") {
				fail("%v", err)
			}
		case <-time.After(deadline):
			fail("no permissions violation")
		}
		login(g)
	},
}

func login(g given) {
	nc := g.connect()
	sub, err := nc.SubscribeSync(g.Subject)
	check(err)
	check(nc.Publish(g.Subject, []byte("welcome")))
	expect(string(next(sub).Data), "welcome")
}

func next(sub *nats.Subscription) *nats.Msg {
	message, err := sub.NextMsg(deadline)
	check(err)
	return message
}

func expect(got, expected string) {
	if got != expected {
		fail("%q instead of %q", got, expected)
	}
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func main() {
	var g given
	check(json.Unmarshal([]byte(os.Args[2]), &g))
	run := scenarios[os.Args[1]]
	if run == nil {
		fail("no scenario %s", os.Args[1])
	}
	run(g)
}

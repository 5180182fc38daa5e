package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// What nats.go can do with an empty bucket.
func init() {
	scenarios["kv"] = func(g given) {
		nc := g.connect()
		js, err := nc.JetStream()
		check(err)
		kv, err := js.KeyValue(g.Bucket)
		check(err)
		first, err := kv.PutString("a.b", "one")
		check(err)
		entry, err := kv.Get("a.b")
		check(err)
		expect(string(entry.Value()), "one")
		expect(fmt.Sprint(entry.Revision()), fmt.Sprint(first))
		second, err := kv.Update("a.b", []byte("two"), first)
		check(err)
		if second <= first {
			fail("revision %d after %d", second, first)
		}
		_, err = kv.Update("a.b", []byte("lost"), first)
		refused(err, "wrong last sequence")
		_, err = kv.Create("a.b", []byte("lost"))
		if !errors.Is(err, nats.ErrKeyExists) {
			fail("%v", err)
		}
		third, err := kv.Create("c", []byte("1"))
		check(err)
		keys, err := kv.Keys()
		check(err)
		expect(strings.Join(keys, " "), "a.b c")

		watcher, err := kv.WatchAll()
		check(err)
		expectEntry(watcher, "a.b", "two", nats.KeyValuePut, second)
		expectEntry(watcher, "c", "1", nats.KeyValuePut, third)
		if got := nextEntry(watcher); got != nil {
			fail("%v instead of the end of the values", got)
		}
		live, err := kv.PutString("d", "live")
		check(err)
		expectEntry(watcher, "d", "live", nats.KeyValuePut, live)
		check(kv.Delete("c"))
		expectEntry(watcher, "c", "", nats.KeyValueDelete, 0)
		check(kv.Purge("d"))
		expectEntry(watcher, "d", "", nats.KeyValuePurge, 0)
		check(watcher.Stop())

		updates, err := kv.Watch("*", nats.UpdatesOnly(), nats.IgnoreDeletes(), nats.MetaOnly())
		check(err)
		fourth, err := kv.Create("c", []byte("again"))
		check(err)
		check(kv.Delete("c"))
		_, err = kv.PutString("x.y", "of another filter")
		check(err)
		fifth, err := kv.PutString("e", "value")
		check(err)
		expectEntry(updates, "c", "", nats.KeyValuePut, fourth)
		expectEntry(updates, "e", "", nats.KeyValuePut, fifth)
		check(updates.Stop())

		_, err = kv.Get("c")
		if !errors.Is(err, nats.ErrKeyNotFound) {
			fail("%v", err)
		}
		history, err := kv.History("a.b")
		check(err)
		expect(fmt.Sprint(len(history)), "1")
		revision, err := kv.GetRevision("a.b", second)
		check(err)
		expect(string(revision.Value()), "two")
		status, err := kv.Status()
		check(err)
		expect(fmt.Sprint(status.Bucket(), status.Values(), status.History()), fmt.Sprint(g.Bucket, 3, 1))
		check(kv.PurgeDeletes())
		_, err = js.KeyValue("no-such-bucket")
		if !errors.Is(err, nats.ErrBucketNotFound) {
			fail("%v", err)
		}
		refused(js.DeleteKeyValue(g.Bucket), "cannot be removed")
		for _, key := range []string{"a.b", "e", "x.y"} {
			check(kv.Delete(key))
		}
		if _, err = kv.Keys(); !errors.Is(err, nats.ErrNoKeysFound) {
			fail("%v", err)
		}
	}
}

func refused(err error, text string) {
	if err == nil || !strings.Contains(err.Error(), text) {
		fail("%v instead of %q", err, text)
	}
}

func nextEntry(watcher nats.KeyWatcher) nats.KeyValueEntry {
	select {
	case entry := <-watcher.Updates():
		return entry
	case <-time.After(deadline):
		fail("no update")
		return nil
	}
}

// Any revision is right if none is given.
func expectEntry(watcher nats.KeyWatcher, key, value string, operation nats.KeyValueOp, revision uint64) {
	entry := nextEntry(watcher)
	if entry == nil {
		fail("the end of the values instead of %s", key)
		return
	}
	expect(fmt.Sprint(entry.Key(), " ", string(entry.Value()), " ", entry.Operation()), fmt.Sprint(key, " ", value, " ", operation))
	if revision > 0 {
		expect(fmt.Sprint(entry.Revision()), fmt.Sprint(revision))
	}
}

// The last connection that was made.
type cutting struct{ last net.Conn }

func (c *cutting) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, deadline)
	c.last = conn
	return conn, err
}

// A watcher goes on at once when the connection was lost, and sees each change once and in order.
func init() {
	scenarios["kv-reconnect"] = func(g given) {
		again := make(chan time.Time, 1)
		dialer := &cutting{}
		nc, err := nats.Connect(g.URL, nats.SetCustomDialer(dialer), nats.ReconnectWait(50*time.Millisecond),
			nats.ReconnectJitter(0, 0), nats.ReconnectHandler(func(*nats.Conn) { again <- time.Now() }))
		check(err)
		js, err := nc.JetStream()
		check(err)
		kv, err := js.KeyValue(g.Bucket)
		check(err)
		writing, err := g.connect().JetStream()
		check(err)
		own, err := writing.KeyValue(g.Bucket)
		check(err)
		watcher, err := kv.Watch("again.*", nats.UpdatesOnly())
		check(err)
		for turn := 0; turn < 3; turn++ {
			check(dialer.last.Close())
			for n := 0; n < 20; n++ {
				_, err = own.PutString("again.a", fmt.Sprintf("%d %d", turn, n))
				check(err)
			}
			since := <-again
			check(own.Delete("again.a"))
			for n := 0; n <= 20; n++ {
				select {
				case entry := <-watcher.Updates():
					if n == 20 {
						expect(entry.Operation().String(), nats.KeyValueDelete.String())
						took := time.Since(since)
						fmt.Fprintln(os.Stderr, "the values after", took)
						if took > 2*time.Second {
							fail("the watcher goes on after %s", took)
						}
					} else {
						expect(string(entry.Value()), fmt.Sprintf("%d %d", turn, n))
					}
				case <-time.After(3 * deadline):
					fail("the watcher is told nothing")
				}
			}
		}
		nc.Close()
	}
}

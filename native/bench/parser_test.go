// Benchmark of nats-server's own parser, put beside its sources: 64 messages in one buffer, as our
// benchmark of the decoder has them. A client of kind JETSTREAM parses like any other, but what it
// publishes goes nowhere.
package server

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkParser(b *testing.B) {
	for _, size := range []int{16, 128, 4096} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			line := fmt.Sprintf("PUB sensors.building7.room12 %d\r\n%s\r\n", size, strings.Repeat("x", size))
			buf := []byte(strings.Repeat(line, 64))
			c := &client{kind: JETSTREAM, srv: &Server{}, msubs: -1, mpay: -1, mcl: MAX_CONTROL_LINE_SIZE}
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				if err := c.parse(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

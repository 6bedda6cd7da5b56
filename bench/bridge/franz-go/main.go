// A bare loop from Kafka to Pub/Sub: no group, no offsets, no retries, nothing held back. It shows what the machine
// gives when nothing is promised.
//
//	franz-go BROKER TOPIC PUBSUB_HOST:PORT PUBSUB_TOPIC
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	batchRecords  = 1000
	callsInFlight = 8
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: franz-go BROKER TOPIC PUBSUB_HOST:PORT PUBSUB_TOPIC")
	}
	broker, topic, endpoint, pubsubTopic := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	client, err := kgo.NewClient(
		kgo.SeedBrokers(broker),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	batches := make(chan []*kgo.Record, callsInFlight)
	publisher := newPublisher(endpoint, pubsubTopic)
	for range callsInFlight {
		go func() {
			var frame []byte
			for batch := range batches {
				frame = appendRequest(frame[:0], pubsubTopic, batch)
				if err := publisher.publish(frame); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	consume(ctx, client, batches)
}

// Cuts what is polled into batches; the rest of a poll goes at once, since the next may be long in coming.
func consume(ctx context.Context, client *kgo.Client, batches chan<- []*kgo.Record) {
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		for _, failure := range fetches.Errors() {
			log.Print(failure.Err)
		}
		batch := make([]*kgo.Record, 0, batchRecords)
		fetches.EachRecord(func(record *kgo.Record) {
			batch = append(batch, record)
			if len(batch) == batchRecords {
				batches <- batch
				batch = make([]*kgo.Record, 0, batchRecords)
			}
		})
		if len(batch) > 0 {
			batches <- batch
		}
	}
}

type publisher struct {
	client *http.Client
	url    string
}

func newPublisher(endpoint, topic string) *publisher {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &publisher{
		client: &http.Client{Transport: transport},
		url:    "http://" + endpoint + "/google.pubsub.v1.Publisher/Publish",
	}
}

func (p *publisher) publish(frame []byte) error {
	request, err := http.NewRequest(http.MethodPost, p.url, bytes.NewReader(frame))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	status := response.Trailer.Get("Grpc-Status")
	if status == "" {
		status = response.Header.Get("Grpc-Status")
	}
	if status != "0" {
		return fmt.Errorf("gRPC status %s", status)
	}
	return nil
}

// Appends a framed PublishRequest: a byte and a length, then the topic and a message for each record.
func appendRequest(frame []byte, topic string, batch []*kgo.Record) []byte {
	frame = append(frame, 0, 0, 0, 0, 0)
	frame = appendField(frame, 1, topic)
	var message, number []byte
	for _, record := range batch {
		message = appendField(message[:0], 1, record.Value)
		message = appendAttribute(message, "kafka-topic", record.Topic)
		number = strconv.AppendInt(number[:0], int64(record.Partition), 10)
		message = appendAttribute(message, "kafka-partition", number)
		number = strconv.AppendInt(number[:0], record.Offset, 10)
		message = appendAttribute(message, "kafka-offset", number)
		number = strconv.AppendInt(number[:0], record.Timestamp.UnixMilli(), 10)
		message = appendAttribute(message, "kafka-timestamp", number)
		frame = appendField(frame, 2, message)
	}
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-5))
	return frame
}

// Appends an entry of the map of attributes.
func appendAttribute[T string | []byte](message []byte, name string, value T) []byte {
	size := 2 + len(name) + 1 + varintSize(len(value)) + len(value)
	message = append(message, 2<<3|2)
	message = binary.AppendUvarint(message, uint64(size))
	message = appendField(message, 1, name)
	return appendField(message, 2, value)
}

func appendField[T string | []byte](message []byte, number byte, value T) []byte {
	message = append(message, number<<3|2)
	message = binary.AppendUvarint(message, uint64(len(value)))
	return append(message, value...)
}

func varintSize(value int) int {
	size := 1
	for value >= 0x80 {
		value >>= 7
		size++
	}
	return size
}

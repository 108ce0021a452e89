import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

/** Kafka Streams doing the work: temperatures, in Fahrenheit. Arguments: brokers, guarantee. */
public class Warm {
  public static void main(String[] args) {
    var json = new ObjectMapper();
    var builder = new StreamsBuilder();
    builder.stream("json", Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
        .mapValues(bytes -> {
          try {
            return json.readTree(bytes);
          } catch (Exception e) {
            throw new RuntimeException(e);
          }
        })
        .filter((key, event) -> event.get("metric").asText().equals("temperature"))
        .mapValues(event -> {
          ObjectNode out = json.createObjectNode();
          for (var name : new String[] {"time", "home", "device"}) out.set(name, event.get(name));
          out.put("value", event.get("value").asDouble() * 1.8 + 32.0);
          try {
            return json.writeValueAsBytes((JsonNode) out);
          } catch (Exception e) {
            throw new RuntimeException(e);
          }
        })
        .to("out-kafka-streams-" + args[1], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
    var p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, "kafka-streams-" + args[1]);
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[1]);
    p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    p.put("auto.offset.reset", "earliest");
    new KafkaStreams(builder.build(), p).start();
  }
}

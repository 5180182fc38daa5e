%% Turns NATS messages into EMQX's, and back.
%%
%% A reply subject is the property Response-Topic, and a header block is the User-Properties. If the
%% properties cannot hold all of a block, the block also travels in a header of EMQX's message.
%% Other nodes of the cluster get that header, too; MQTT clients do not see it.
-module(nats_gateway_emqx_message).

-export([constant_headers/2]).
-export([make/3]).
-export([make/4]).
-export([delivery/3]).
-export([facts/1]).
%% For tests
-export([properties/5]).
-export([reply/1]).
-export([headers/1]).

-include("nats_gateway.hrl").

-define(FLAGS, #{dup => false, retain => false}).

%% Message headers of our own, and two of the built-in gateway.
-define(HEADER_BLOCK, nats_gateway_header_block).
-define(REPLY_TO, reply_to).
-define(NATS_HEADERS, nats_headers).

%% -------------------------------------------------------------------------------------------
%% To EMQX

%% The headers of every message of this client.
-spec constant_headers(
    nats_gateway_emqx_client:clientinfo(), nats_gateway_emqx_client:conninfo()
) -> map().
constant_headers(ClientInfo, #{proto_ver := ProtoVer}) ->
    #{protocol := Protocol, username := Username, peerhost := PeerHost, peername := Peername} =
        ClientInfo,
    Constant = #{
        protocol => Protocol,
        username => Username,
        peerhost => PeerHost,
        peername => Peername,
        proto_ver => ProtoVer,
        properties => #{}
    },
    maps:merge(Constant, maps:with([client_attrs], ClientInfo)).

%% The caller has checked that the topic of `Pub' is valid.
-spec make(#pub{}, QoS :: 0..2, {ClientId :: binary(), Constant :: map()}) -> tuple().
make(Pub, QoS, {ClientId, Constant}) ->
    {Name, Headers} = name_and_headers(Pub, Constant),
    emqx_message:make(ClientId, QoS, Name, Pub#pub.payload, ?FLAGS, Headers).

%% The same with the properties that the headers of `Pub' have asked for, and with their QoS.
-spec make(#pub{}, #properties{}, QoS :: 0..2, {ClientId :: binary(), Constant :: map()}) -> tuple().
make(Pub, Properties, QoS, {ClientId, Constant}) ->
    #properties{retain = Retain, expiry = Expiry, payload_format = Format} = Properties,
    {Name, Headers = #{properties := Set}} = name_and_headers(Pub, Constant),
    Asked =
        [{'Message-Expiry-Interval', Expiry} || Expiry =/= undefined] ++
            [{'Payload-Format-Indicator', Format} || Format =/= undefined],
    emqx_message:make(ClientId, QoS, Name, Pub#pub.payload, ?FLAGS#{retain := Retain}, Headers#{
        properties := maps:merge(Set, maps:from_list(Asked))
    }).

name_and_headers(Pub, Constant) ->
    #pub{topic = Topic, reply_to = ReplyTo, reply_topic = ReplyTopic, headers = Block} = Pub,
    {Name, Correlation} = nats_gateway_host:topic(Topic),
    {Name, properties(Constant, Correlation, ReplyTo, ReplyTopic, Block)}.

%% The headers of one message. `Constant' are the headers of every message of this client.
-spec properties(
    Constant :: map(),
    Correlation :: undefined | binary(),
    ReplyTo :: undefined | binary(),
    ReplyTopic :: undefined | binary() | invalid | {binary(), binary()},
    Block :: undefined | binary()
) -> map().
properties(Constant, undefined, undefined, _, undefined) ->
    Constant;
properties(Constant, Correlation, ReplyTo, ReplyTopic, Block) ->
    {Replies, Headers} = reply_properties(Correlation, ReplyTo, ReplyTopic, Constant),
    case Block of
        undefined ->
            Headers#{properties := Replies};
        _ ->
            {Pairs, ContentType, Exact} = nats_gateway_nif:header_properties(Block),
            Properties = with_content_type(ContentType, user_properties(Pairs, Replies)),
            case Exact of
                true -> Headers#{properties := Properties};
                false -> Headers#{properties := Properties, ?HEADER_BLOCK => Block}
            end
    end.

%% A message has only one Correlation-Data. That of an answer has precedence.
reply_properties(undefined, undefined, _, Headers) ->
    {#{}, Headers};
reply_properties(Correlation, undefined, _, Headers) ->
    {#{'Correlation-Data' => Correlation}, Headers};
reply_properties(undefined, _, {ReplyTopic, Correlation}, Headers) ->
    {#{'Response-Topic' => ReplyTopic, 'Correlation-Data' => Correlation}, Headers};
reply_properties(undefined, _, ReplyTopic, Headers) when is_binary(ReplyTopic) ->
    {#{'Response-Topic' => ReplyTopic}, Headers};
reply_properties(Correlation, _, ReplyTopic, Headers) when is_binary(ReplyTopic) ->
    {#{'Response-Topic' => ReplyTopic, 'Correlation-Data' => Correlation}, Headers};
reply_properties(undefined, ReplyTo, _, Headers) ->
    {#{}, Headers#{?REPLY_TO => ReplyTo}};
reply_properties(Correlation, ReplyTo, _, Headers) ->
    {#{'Correlation-Data' => Correlation}, Headers#{?REPLY_TO => ReplyTo}}.

user_properties([], Properties) -> Properties;
user_properties(Pairs, Properties) -> Properties#{'User-Property' => Pairs}.

with_content_type(undefined, Properties) -> Properties;
with_content_type(ContentType, Properties) -> Properties#{'Content-Type' => ContentType}.

%% -------------------------------------------------------------------------------------------
%% From EMQX

-spec delivery(nats_gateway_host:key(), Message :: tuple(), Id) -> #delivery{} when
    Id :: undefined | {binary(), Origin :: term()}.
delivery(Key, Message, Id) ->
    Headers = emqx_message:get_headers(Message),
    #delivery{
        key = Key,
        topic = emqx_message:topic(Message),
        reply = reply(Headers),
        headers = headers(Headers),
        payload = payload(emqx_message:payload(Message)),
        id = Id
    }.

%% The properties of a message as an MQTT client would get them: only what comes out of the store of
%% retained messages counts as retained.
-spec facts(Message :: tuple()) -> nats_gateway_publish_properties:facts().
facts(Message) ->
    Headers = emqx_message:get_headers(emqx_message:update_expiry(Message)),
    Properties = maps:get(properties, Headers, #{}),
    #{
        retain => maps:get(retained, Headers, false) =:= true,
        qos => emqx_message:qos(Message),
        expiry => number(maps:get('Message-Expiry-Interval', Properties, undefined)),
        payload_format => number(maps:get('Payload-Format-Indicator', Properties, undefined))
    }.

%% Rules and EMQX's REST API can put anything there.
number(Number) when is_integer(Number), Number >= 0 -> Number;
number(_) -> undefined.

%% A payload of another type goes to `nats_gateway_nif:encode/2' unchanged, which leaves out only
%% that message.
payload(Payload) when is_binary(Payload) ->
    Payload;
payload(Payload) ->
    try
        iolist_to_binary(Payload)
    catch
        error:badarg -> Payload
    end.

-spec reply(Headers :: map()) -> nats_gateway_nif:reply().
reply(#{properties := #{'Response-Topic' := Topic} = Properties}) when is_binary(Topic) ->
    {topic, Topic, scalar(maps:get('Correlation-Data', Properties, undefined))};
reply(#{?REPLY_TO := Subject}) when is_binary(Subject), Subject =/= <<>> ->
    {subject, Subject};
reply(_) ->
    undefined.

-spec headers(Headers :: map()) -> nats_gateway_nif:headers().
headers(#{?HEADER_BLOCK := Block}) when is_binary(Block) ->
    Block;
headers(#{properties := Properties = #{'User-Property' := Pairs}}) ->
    {properties, pairs(Pairs), content_type(Properties)};
headers(#{properties := Properties = #{'Content-Type' := _}}) ->
    {properties, [], content_type(Properties)};
headers(#{?NATS_HEADERS := Headers}) when is_map(Headers), map_size(Headers) > 0 ->
    {properties, pairs(Headers), undefined};
headers(_) ->
    undefined.

content_type(Properties) -> scalar(maps:get('Content-Type', Properties, undefined)).

%% Only the pairs of MQTT clients are certain to be texts: rules and EMQX's REST API can put
%% anything there.
pairs(Pairs) when is_map(Pairs) -> texts(maps:to_list(Pairs));
pairs(Pairs) ->
    case are_texts(Pairs) of
        true -> Pairs;
        false -> texts(Pairs)
    end.

are_texts([{Name, Value} | Pairs]) when is_binary(Name), is_binary(Value) -> are_texts(Pairs);
are_texts(Pairs) -> Pairs =:= [].

texts([{Name, Value} | Pairs]) ->
    case {scalar(Name), scalar(Value)} of
        {NName, NValue} when is_binary(NName), is_binary(NValue) ->
            [{NName, NValue} | texts(Pairs)];
        _ ->
            texts(Pairs)
    end;
texts([_ | Pairs]) ->
    texts(Pairs);
texts(_) ->
    [].

scalar(Text) when is_binary(Text) -> Text;
scalar(Integer) when is_integer(Integer) -> integer_to_binary(Integer);
scalar(Float) when is_float(Float) -> float_to_binary(Float, [short]);
scalar(Atom) when is_atom(Atom), Atom =/= undefined -> atom_to_binary(Atom);
scalar(_) -> undefined.

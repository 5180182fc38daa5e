%% The Rust hot path: NATS framing and the conversions between NATS subjects and MQTT topics.
%%
%% Every function is stateless and runs on a normal scheduler, unless its comment says otherwise.
%% `decode/2' handles a bounded number of bytes per call. If it stops early, `Need' is 0, and the
%% caller calls it again with the rest.
-module(nats_gateway_nif).

-on_load(on_load/0).

-export([load/0]).
-export([library/1]).
-export([platform/1]).
-export([choose_platform/2]).
-export([load_error/2]).
-export([decode/2]).
-export([encode/2]).
-export([info/1]).
-export([json/1]).
-export([json_decode/1]).
-export([topic/2]).
-export([filter/2]).
-export([subject/2]).
-export([canonical_subject/1]).
-export([published_subject/1]).
-export([share_name/1]).
-export([subject_matches/2]).
-export([topic_matches/2]).
-export([valid_publish_subject/1]).
-export([header_properties/1]).
-export([publish_properties/2]).
-export([show_properties/2]).
-export([subject_mapping/2]).
-export([topic_seen/3]).
-export([quote/1]).
-export([websocket_decode/3]).
-export([websocket_header/2]).
-export([reply_subject/2]).
-export([nkey_role/1]).
-export([nkey_verify/3]).
-export([jwt_decode/1]).
-export([jwt_source_allowed/2]).
-export([jwt_hours/4]).
-export([bcrypt_verify/2]).
-export([bcrypt_cost/1]).

-nifs([
    decode_chunk/3,
    encode/2,
    info/1,
    json/1,
    json_decode/1,
    topic/2,
    filter/2,
    subject/2,
    canonical_subject/1,
    published_subject/1,
    share_name/1,
    subject_matches/2,
    topic_matches/2,
    valid_publish_subject/1,
    header_properties/1,
    publish_properties/2,
    show_properties/2,
    subject_mapping/2,
    topic_seen/3,
    quote/1,
    websocket_decode/3,
    websocket_header/2,
    reply_subject/2,
    nkey_role/1,
    nkey_verify/3,
    jwt_decode/1,
    jwt_source_allowed/2,
    jwt_hours/4,
    bcrypt_verify/2,
    bcrypt_cost/1
]).

-include("nats_gateway.hrl").

-export_type([topic/0, op/0, reply/0, headers/0, error_reason/0, mappings/0]).
-export_type([websocket_settings/0, websocket_position/0, websocket_part/0]).
-export_type([token/0, user_limits/0, permissions/0]).

%% The topic of a subject, with the mountpoint. `invalid' means that no topic can hold the subject.
%% A reply subject that `encode/2' made comes with the correlation data of its MQTT 5 request.
-type topic() :: binary() | invalid | {binary(), CorrelationData :: binary()}.

-type op() ::
    {connect, #{atom() => binary() | boolean() | integer()}} | ping | pong | #pub{} | #sub{} | #unsub{}.

%% Compiled rules that map subjects. Each is empty if there are no such rules.
-type mappings() :: {Publish :: binary(), Subscribe :: binary()}.

-type error_reason() ::
    unknown_protocol_operation
    %% The same, but a pedantic client is first told that the subject is invalid.
    | invalid_publish_subject
    | authorization_violation
    | maximum_payload_violation
    | maximum_control_line_exceeded
    %% The connection is closed without a text:
    | bad_arguments
    | bad_size
    | bad_json
    | headers_not_supported
    | client_error.

-type reply() ::
    undefined
    | {subject, binary()}
    | {topic, binary(), CorrelationData :: undefined | binary()}.

-type headers() ::
    undefined
    %% an unchanged NATS/1.0 block
    | binary()
    %% MQTT 5 user properties in order, and the Content-Type property
    | {properties, [{binary(), binary()}], ContentType :: undefined | binary()}
    %% the same for a client that takes only ASCII in values
    | {ascii_properties, [{binary(), binary()}], ContentType :: undefined | binary()}.

%% {MaxFrame, Deflate}: the most bytes of a data frame, and whether messages may be compressed.
-type websocket_settings() :: {0..16#FFFFFFFFFFFFFFFF, boolean()}.

%% {Remaining, Key, Message, LastFrame} of the current data frame: the bytes that are still to come,
%% their key, the kind of the message, and whether this is its last frame. A stream begins with {0,
%% 0, none, false}.
-type websocket_position() ::
    {non_neg_integer(), 0..16#FFFFFFFF, none | plain | deflated, boolean()}.

%% Bytes of the stream, or bytes of a compressed message and whether they end it.
-type websocket_part() :: binary() | {deflated, binary(), boolean()}.

%% The claims of a NATS JWT. Times are seconds of Unix time; 0 means that there is none.
-type token() :: #{
    kind := operator | account | user,
    issuer := binary(),
    subject := binary(),
    name := binary(),
    issued_at := integer(),
    expires := integer(),
    not_before := integer(),
    claims := operator_claims() | account_claims() | user_claims()
}.

-type operator_claims() :: #{signing_keys := [binary()], strict_signing_key_usage := boolean()}.

-type account_claims() :: #{
    %% a scoped key has a template of what its users may do
    signing_keys := [{binary(), Template :: undefined | user_limits()}],
    %% which JWTs of this user are revoked: those issued up to that time; `*' means all users
    revocations := [{User :: binary(), integer()}],
    default_permissions := permissions(),
    tags := [binary()],
    subs := integer(),
    payload := integer(),
    connections := integer(),
    disallow_bearer := boolean()
}.

-type user_claims() :: #{
    %% empty if the issuer is the account itself
    issuer_account := binary(),
    tags := [binary()],
    limits := user_limits(),
    %% apply in addition to those of the limits
    outer_permissions := permissions(),
    has_limits := boolean()
}.

%% A negative number means no limit.
-type user_limits() :: #{
    permissions := permissions(),
    src := [binary()],
    times := [{Start :: binary(), End :: binary()}],
    times_location := binary(),
    subs := integer(),
    payload := integer(),
    bearer_token := boolean(),
    allowed_connection_types := [binary()]
}.

%% An empty `allow' allows everything. Responses are a number and nanoseconds. 0 means the default,
%% and a negative value means no limit.
-type permissions() :: #{
    publish := #{allow := [binary()], deny := [binary()]},
    subscribe := #{allow := [binary()], deny := [binary()]},
    responses := undefined | {integer(), integer()}
}.

%% The module loads even without its library. The code that starts the gateway calls `load/0', and
%% reports what is wrong.
on_load() ->
    _ = load_library(),
    ok.

%% Loads the library, unless the module has it already.
-spec load() -> ok | {error, Text :: binary()}.
load() ->
    case load_library() of
        ok -> ok;
        {error, {reload, _}} -> ok;
        {error, {_, Text}} -> {error, unicode:characters_to_binary(load_error(machine(), Text))}
    end.

load_library() ->
    case library("nats_gateway_nif") of
        {ok, Library} -> erlang:load_nif(Library, 0);
        {error, Reason} -> {error, Reason}
    end.

%% The file of a library of ours that fits this machine: each platform has a directory.
-spec library(Name :: string()) ->
    {ok, file:filename()} | {error, {not_served, Text :: string()}}.
library(Name) ->
    Priv = priv_directory(),
    Served = [
        Directory
     || {ok, Directories} <- [file:list_dir(Priv)],
        Directory <- lists:sort(Directories),
        {ok, _} <- [file:read_file_info(filename:join([Priv, Directory, Name ++ ".so"]))]
    ],
    case choose_platform(machine(), Served) of
        {ok, Platform} -> {ok, filename:join([Priv, Platform, Name])};
        {error, Text} -> {error, {not_served, Text}}
    end.

machine() -> erlang:system_info(system_architecture).

%% `code:priv_dir/1' knows the directory only if the application is in the code path under its own
%% name, and a plugin loader does not promise that.
priv_directory() ->
    case code:priv_dir(nats_gateway) of
        {error, bad_name} ->
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Known ->
            Known
    end.

%% What a machine calls itself has a vendor in it that does not matter: `x86_64-pc-linux-gnu' is the
%% platform `x86_64-linux-gnu'. The module `string' is not used, because its tables take longer to load
%% than any other module of a start.
-spec platform(Machine :: string()) -> string().
platform(Machine) ->
    Parts = binary:split(list_to_binary(Machine), <<"-">>, [global]),
    [Processor | Others] = [binary_to_list(Part) || Part <- Parts],
    case lists:dropwhile(fun(Part) -> Part =/= "linux" end, Others) of
        [] -> Machine;
        System -> lists:flatten(lists:join("-", [Processor | System]))
    end.

-spec choose_platform(Machine :: string(), Served :: [string()]) ->
    {ok, Platform :: string()} | {error, Text :: string()}.
choose_platform(Machine, Served) ->
    Platform = platform(Machine),
    case lists:member(Platform, Served) of
        true ->
            {ok, Platform};
        false when Served =:= [] ->
            {error, "there is no native library, for this machine (" ++ Machine ++ ") or another"};
        false ->
            Others = lists:flatten(lists:join(", ", Served)),
            {error,
                "there is no native library for this machine (" ++ Machine ++ "), only for " ++ Others}
    end.

%% The dynamic linker's text names the version that it does not find, but not what that means.
-spec load_error(Machine :: string(), Text :: string()) -> string().
load_error(Machine, Text) ->
    case re:run(Text, "version .GLIBC_([0-9.]+). not found", [{capture, [1], list}]) of
        {match, [Needed]} ->
            "the C library of this machine (" ++ Machine ++ ") is older than glibc " ++ Needed ++
                ", which the native library needs: " ++ Text;
        nomatch ->
            Text
    end.

%% Returns all complete operations of the bytes, the rest, and the number of bytes that the rest
%% must have before another call can yield more. 0 means: call again at once. A CONNECT ends a call,
%% because it may change the settings. Operations before an error are valid. No part keeps more than
%% 64 times its own bytes alive. The parts of SUB and UNSUB keep only themselves alive.
-spec decode(binary(), #decoder{}) ->
    {ok, [op()], Rest :: binary(), Need :: non_neg_integer()}
    | {error, error_reason(), [op()]}.
decode(Bytes, Settings) -> decode_chunk(Bytes, binary:referenced_byte_size(Bytes), Settings).

decode_chunk(_Bytes, _Referenced, _Settings) -> erlang:nif_error(not_loaded).

%% Returns MSG and HMSG frames, the number of deliveries that were left out, and the deliveries for
%% the next call, because each call does a bounded amount of work. The mountpoint is removed from
%% topics.
%%
%% The arguments of a frame have at most 4096 bytes, because some clients take no more. If the reply
%% subject of a message does not fit, the message goes without it. If its subject does not fit, the
%% message is left out. A message is also left out if its topic, reply, headers or payload have
%% another type: anybody can send such a message, and it must not stop the others. Wrong sids are an
%% error `badarg'.
-spec encode([#message{}], Mountpoint :: binary()) ->
    {iodata(), LeftOut :: non_neg_integer(), [#message{}]}.
encode(_Deliveries, _Mountpoint) -> erlang:nif_error(not_loaded).

%% The INFO line with CRLF. Keys are the JSON field names as atoms.
-spec info(#{atom() => binary() | boolean() | integer()}) -> binary().
info(_Fields) -> erlang:nif_error(not_loaded).

%% JSON of maps (with atoms or binaries as keys), lists, integers of 64 bits, UTF-8 binaries and
%% atoms; `true', `false' and `null' are JSON's own. The members of an object are sorted by their
%% keys. Other terms, and more than 32 levels, are an error `badarg'.
-spec json(term()) -> binary().
json(_Term) -> erlang:nif_error(not_loaded).

%% The reverse, with binaries as keys. The caller bounds the size.
-spec json_decode(binary()) -> {ok, term()} | error.
json_decode(_Text) -> erlang:nif_error(not_loaded).

-spec topic(Subject :: binary(), Mountpoint :: binary()) -> topic().
topic(_Subject, _Mountpoint) -> erlang:nif_error(not_loaded).

%% The MQTT topic filter of a subscribe subject. `invalid' means `Invalid Subject'.
-spec filter(Subject :: binary(), Mountpoint :: binary()) -> binary() | invalid.
filter(_Subject, _Mountpoint) -> erlang:nif_error(not_loaded).

-spec subject(Topic :: binary(), Mountpoint :: binary()) -> binary().
subject(_Topic, _Mountpoint) -> erlang:nif_error(not_loaded).

%% Several subjects may stand for the same topic or filter. Returns the one that deliveries have.
-spec canonical_subject(Subject :: binary()) -> binary().
canonical_subject(_Subject) -> erlang:nif_error(not_loaded).

%% The canonical subject that subscribers get for a publish to this subject. For a reply subject
%% with correlation data, it is the subject of the response topic.
-spec published_subject(Subject :: binary()) -> binary().
published_subject(_Subject) -> erlang:nif_error(not_loaded).

%% The MQTT share name of a queue group. The group can be found from the share name.
-spec share_name(QueueGroup :: binary()) -> binary() | invalid.
share_name(_QueueGroup) -> erlang:nif_error(not_loaded).

%% Matches by NATS's rules: `*' matches one token, a final `>' one or more.
-spec subject_matches(Pattern :: binary(), Subject :: binary()) -> boolean().
subject_matches(_Pattern, _Subject) -> erlang:nif_error(not_loaded).

%% Matches by MQTT's rules: `#' matches the parent level, too, and a wildcard in the first level
%% does not match topics that begin with `$'.
-spec topic_matches(Filter :: binary(), Topic :: binary()) -> boolean().
topic_matches(_Filter, _Topic) -> erlang:nif_error(not_loaded).

%% The pedantic check: no token is empty, `*' or `>'.
-spec valid_publish_subject(binary()) -> boolean().
valid_publish_subject(_Subject) -> erlang:nif_error(not_loaded).

%% The MQTT 5 properties of a header block. `Exact' means that these properties give the same bytes
%% again. Otherwise the host must carry the block itself, too.
-spec header_properties(binary()) ->
    {[{binary(), binary()}], ContentType :: undefined | binary(), Exact :: boolean()}.
header_properties(_Block) -> erlang:nif_error(not_loaded).

%% Takes the headers that stand for properties of the PUBLISH out of a block (docs/retained.md). `none'
%% if it has none of them. Otherwise the first header that cannot be followed, by its name, and why:
%% the payload is not what the header says, the header is repeated, or its value is wrong.
-spec publish_properties(Block :: binary(), Payload :: binary()) ->
    none | #properties{} | {refused, Header :: binary(), payload | repeated | value}.
publish_properties(_Block, _Payload) -> erlang:nif_error(not_loaded).

%% The block with these headers, and without all others of the names that `publish_properties/2'
%% knows. Names and values must be valid in a block.
-spec show_properties(Block :: binary(), [{Name :: binary(), Value :: binary()}]) -> binary().
show_properties(_Block, _Shown) -> erlang:nif_error(not_loaded).

%% Compiles a rule that maps subjects (docs/subject-mapping.md). The rules of a list, one after the
%% other, are what #decoder{} takes (`mappings/0'). `Source' is the subject before the arrow.
-spec subject_mapping(Rule :: binary(), publish | subscribe) ->
    {ok, Source :: binary(), Compiled :: binary()} | {error, Problem :: binary()}.
subject_mapping(_Rule, _Direction) -> erlang:nif_error(not_loaded).

%% The topic whose subject the client sees, of a message for a subscription that was mapped. `Inverse'
%% is what #sub{} has.
-spec topic_seen(Topic :: binary(), Inverse :: binary(), Mountpoint :: binary()) -> binary().
topic_seen(_Topic, _Inverse, _Mountpoint) -> erlang:nif_error(not_loaded).

%% A subject or queue name as nats-server quotes it in -ERR texts (Go's %q, quotes included).
-spec quote(binary()) -> binary().
quote(_Text) -> erlang:nif_error(not_loaded).

%% Decodes what has arrived of a client's WebSocket frames. Returns the parts in order, the payloads
%% of pings, and how it goes on. Data is passed on as it arrives. `Rest' is shorter than a header or
%% a control frame. It must have `Need' bytes before another call can yield more (0: call again at
%% once). Parts and pings before a close frame or an error are valid. `Code' is for the close frame
%% to send.
-spec websocket_decode(binary(), websocket_settings(), websocket_position()) ->
    {[websocket_part()], Pings :: [binary()],
        {more, Rest :: binary(), Need :: non_neg_integer(), websocket_position()}
        | {close, Payload :: binary()}
        | {error, Code :: 1000..4999, Text :: binary()}}.
websocket_decode(_Bytes, _Settings, _Position) -> erlang:nif_error(not_loaded).

%% The header of a frame to the client. A payload of `Length' bytes follows it unchanged.
-spec websocket_header(binary | deflated | pong | close, Length :: non_neg_integer()) -> binary().
websocket_header(_Frame, _Length) -> erlang:nif_error(not_loaded).

%% The reply subject that a delivery has in its frame.
-spec reply_subject(reply(), Mountpoint :: binary()) -> binary().
reply_subject(_Reply, _Mountpoint) -> erlang:nif_error(not_loaded).

%% The role of a public NKey. `other' is a role with which nobody logs in.
-spec nkey_role(binary()) -> operator | account | user | other | invalid.
nkey_role(_PublicKey) -> erlang:nif_error(not_loaded).

%% `Signature' is base64 in any of the forms that clients use.
-spec nkey_verify(PublicKey :: binary(), Message :: binary(), Signature :: binary()) -> boolean().
nkey_verify(_PublicKey, _Message, _Signature) -> erlang:nif_error(not_loaded).

%% Checks the form of the token and the signature of its issuer, but not whether the issuer is
%% trusted. Runs on a dirty scheduler.
-spec jwt_decode(binary()) -> {ok, token()} | {error, Text :: binary()}.
jwt_decode(_Token) -> erlang:nif_error(not_loaded).

%% Whether the address (as text) is in one of the networks. If there are no networks, every address
%% is allowed.
-spec jwt_source_allowed([binary()], Address :: binary()) -> boolean().
jwt_source_allowed(_Networks, _Address) -> erlang:nif_error(not_loaded).

%% The milliseconds until the end of the current hours. `Offset' is used for an empty location: the
%% seconds that the local clock is ahead of UTC. The last argument is the current time, in
%% milliseconds of Unix time.
-spec jwt_hours([{binary(), binary()}], Location :: binary(), Offset :: integer(), integer()) ->
    pos_integer() | infinity | closed.
jwt_hours(_Times, _Location, _Offset, _Now) -> erlang:nif_error(not_loaded).

%% Runs on a dirty scheduler, because bcrypt takes milliseconds by design.
-spec bcrypt_verify(Password :: binary(), Hash :: binary()) -> boolean().
bcrypt_verify(_Password, _Hash) -> erlang:nif_error(not_loaded).

%% The cost of a hash. Each step doubles the time.
-spec bcrypt_cost(Hash :: binary()) -> non_neg_integer() | invalid.
bcrypt_cost(_Hash) -> erlang:nif_error(not_loaded).
